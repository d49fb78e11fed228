"""Programs that JAX compiled for earlier tests, kept on disk for other workers, processes and sessions."""

import contextlib
import ctypes
import hashlib
import pathlib
import platform
import sys

LARGEST = 2**30
"""Bytes that a folder may take before it is emptied: changed code leaves the programs of old code behind."""


def machine():
    """A name that changes with the processor: compiled code is for its instruction set. JAX adds its own version."""
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        described = sorted({line for line in lines if line.split("\t")[0] in ("model name", "flags", "Features")})
        return hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]
    return f"{platform.machine()}-{platform.node()}"


def share(folder, environment):
    """Have JAX keep programs of every size in a folder, in this process and in those it starts.

    Variables that are set already stay, so that JAX_ENABLE_COMPILATION_CACHE=false turns it off.
    """
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
    # JAX has this for tests: a third less to compile and to run. `make test-claims` leaves it off, for the digits.
    environment.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
        # XLA's older emitters write the same arithmetic, and compile in 40 % of the time.
        environment.setdefault(
            "XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        )
    # Two workers have a core each: a second thread of BLAS would only spin beside the other worker.
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    # A program that another worker is just writing is compiled, and no test's standard error says so.
    environment.setdefault("PYTHONWARNINGS", "ignore:Error reading persistent compilation cache:UserWarning")


def keep_modules(folder, environment):
    """Have Python keep compiled modules in a folder where the user wants none beside the sources.

    Every process that a test starts would compile all that it imports again: a third of the suite's time.
    """
    if environment.pop("PYTHONDONTWRITEBYTECODE", ""):
        environment.setdefault("PYTHONPYCACHEPREFIX", str(folder))
        sys.dont_write_bytecode, sys.pycache_prefix = False, environment["PYTHONPYCACHEPREFIX"]


def encode_without_optimisation(environment):
    """Compile blocks of rows as all other programs of the tests: the library asks for LLVM's first level by itself.

    It takes twice as long to compile networks of sites and tables. `make test-claims` compiles as users do.
    """
    import jax

    from widelimit.compute import tiles

    if environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
        options = tiles.QUICK | {"xla_backend_optimization_level": 0}
        tiles._encodes[False] = jax.jit(tiles._encode, static_argnames="count", compiler_options=options)


def quick_jit(function):
    """Compile in half of the time what runs a few times only, and not fast; the arithmetic is the same."""
    import jax

    return jax.jit(
        function,
        compiler_options={
            "xla_cpu_use_fusion_emitters": False,
            "xla_cpu_parallel_codegen_split_count": 1,
            "xla_backend_optimization_level": 0,
        },
    )


def memory_maps():
    """How many this process has, where the system says so: Linux allows 65,530, and each program takes several."""
    with contextlib.suppress(OSError):
        return pathlib.Path("/proc/self/maps").read_bytes().count(b"\n")
    return 0


def return_memory():
    """Have malloc give the system back what is free, where malloc is glibc's.

    By itself it keeps nearly all that dropped programs took: a session that once was large would stay so, and drop its
    programs after every module.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def tidy(folder):
    """Remove damaged programs, which JAX would compile at every start and never replace; all, where they are many."""
    files = [path for path in folder.glob("*") if path.is_file()] if folder.is_dir() else []
    full = sum(path.stat().st_size for path in files) > LARGEST
    for path in files:
        if full or not whole(path):
            path.unlink(missing_ok=True)


def whole(path):
    """Whether a file was written to its end, as the command line's own cache asks; other files are left to JAX."""
    from widelimit.cli import program_cache  # which imports JAX, whose variables are set by then

    return not path.name.endswith("-cache") or program_cache._whole(path.read_bytes())


@contextlib.contextmanager
def ignored():
    """JAX neither reads nor writes stored programs."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
