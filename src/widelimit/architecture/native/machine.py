"""LLVM makes machine code for the processor that runs it; calls leave Python's lock to other threads."""

from __future__ import annotations

import ctypes
import functools
from typing import Any, final

_HEAD = 'attributes #0 = {{ nounwind "prefer-vector-width"="512" "target-cpu"="{cpu}" "target-features"="{features}" }}'


@final
class Compiled:
    """The function `run` of a module, and what keeps its memory."""

    def __init__(self, text: str, cpu: str = "") -> None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        cpu, features = (cpu, "") if cpu else (llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
        module = llvm.parse_assembly(text + "\n\n" + _HEAD.format(cpu=cpu, features=features))
        machine = llvm.Target.from_default_triple().create_target_machine(cpu=cpu, features=features, opt=2, jit=True)
        module.triple, module.data_layout = machine.triple, str(machine.target_data)
        options = llvm.create_pipeline_tuning_options(speed_level=2)
        options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
        llvm.create_pass_builder(machine, options).getModulePassManager().run(
            module, llvm.create_pass_builder(machine, options)
        )
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        given = text.split("@run(")[1].split(")")[0].split(",")
        kinds = [ctypes.c_void_p if "ptr" in word else ctypes.c_int64 for word in given]
        self.run = ctypes.CFUNCTYPE(None, *kinds)(self._engine.get_function_address("run"))


@functools.lru_cache(maxsize=64)
def compiled(text: str, cpu: str = "") -> Any:
    """Return the compiled module of a text, which is compiled once."""
    return Compiled(text, cpu)
