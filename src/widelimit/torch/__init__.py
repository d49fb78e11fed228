"""A PyTorch module has an empirical NTK, and tangents. Needs the extra: pip install "widelimit[torch]"."""

from collections.abc import Sequence
from typing import Literal, overload

from widelimit import extras, validation
from widelimit.kernels.empirical.outputs import OUTPUTS, Output
from widelimit.progress import Report, no_progress

try:
    import torch
except ModuleNotFoundError as error:
    raise extras.explained(error, "widelimit.torch") from error

from widelimit.torch.axes import axes_of
from widelimit.torch.bits import bits
from widelimit.torch.checks import Names, check_mode, trained_parameters
from widelimit.torch.gradients import tangents as tangents
from widelimit.torch.jacobian import Of
from widelimit.torch.kernels import AnyModuleKernel, ModuleDiagonal, ModuleKernel, ModuleMatrixKernel
from widelimit.torch.module import ModuleJacobian, layers_of

_CLASSES: dict[Output, type[AnyModuleKernel]] = {
    "full": ModuleMatrixKernel,
    "trace": ModuleKernel,
    "diagonal": ModuleDiagonal,
}


@overload
def empirical_ntk(
    module: torch.nn.Module, *, output: Literal["full"] = "full", trace_axes: None = None, diagonal_axes: None = None,
    of: Of | None = None, parameters: Names | None = None, memory: float | None = None, progress: Report | None = None,
) -> ModuleMatrixKernel: ...  # fmt: skip
@overload
def empirical_ntk(
    module: torch.nn.Module, *, output: Literal["trace"], trace_axes: None = None, diagonal_axes: None = None,
    of: Of | None = None, parameters: Names | None = None, memory: float | None = None, progress: Report | None = None,
) -> ModuleKernel: ...  # fmt: skip
@overload
def empirical_ntk(
    module: torch.nn.Module, *, output: Output = "full", trace_axes: Sequence[int] | None = None,
    diagonal_axes: Sequence[int] | None = None, of: Of | None = None, parameters: Names | None = None,
    memory: float | None = None, progress: Report | None = None,
) -> ModuleDiagonal: ...  # fmt: skip
def empirical_ntk(
    module: torch.nn.Module, *, output: Output = "full", trace_axes: Sequence[int] | None = None,
    diagonal_axes: Sequence[int] | None = None, of: Of | None = None, parameters: Names | None = None,
    memory: float | None = None, progress: Report | None = None,
) -> AnyModuleKernel:  # fmt: skip
    """Theta(x, x')[a, b] = sum_p df_a(x)/dtheta_p df_b(x')/dtheta_p, theta a PyTorch module's trainable parameters.

    By structured derivatives: dense, convolutional, embedding, normalisation and attention layers give the inner
    products of their signals and backward signals; parameters used in other ways are differentiated one by one. It runs
    on the module's device. Parameters are shared, not copied, where their dtype is that of the inputs: a kernel whose
    module was trained since is an error (make it of copy.deepcopy(module) to keep it).

    Args:
        module: maps rows of inputs to rows of outputs, a row's output a function of that row alone: call module.eval()
            where layers of it know a training mode. Inputs X are an array (n, ...), or a tuple (module(*X)) or
            dictionary (module(**X)) of arrays; integers are passed as they are. Outputs (n, ...) of any rank; the
            logits of a Hugging Face model; several tensors are laid side by side.
        output: "full", "trace" (mean over outputs) or "diagonal", as for `widelimit.empirical_ntk`.
        trace_axes: axes of the outputs, behind the rows, over which the mean is taken; instead of `output`.
        diagonal_axes: axes of the outputs of which only equal indices meet.
        of: of(outputs, X) -> (n,) or (n, ...), taken in place of the outputs: some of them, a loss of each row.
        parameters: names, shell patterns such as "layers.0.*", or a function of the name; all trainable ones if None.
        memory: GiB of working memory; unless given 0.75, or half of what is free if that is less, and on a GPU half of
            its free memory. Factors of rows that need more go to a temporary folder (TMPDIR); `explain` says how much.
        progress: called as progress("gradients", rows done, rows), then progress("kernel matrix", steps done, steps).

    Returns:
        A kernel with gram, cross, diag, parts and explain, whose results are NumPy arrays; "full" is a matrix-valued
        kernel (outputs of any rank side by side), "trace" a scalar one, like all others. With axes: (n, m, ...), in
        their order one for each of diagonal_axes and two for each of the others, those traced left out.

    Raises:
        TypeError, ValueError: not a module, no trainable parameters, an unknown option, layers in training mode whose
            output depends on the batch or on chance; at inputs: a module that fails on them, mixes rows, or gives
            integers; parameters on several devices, inputs on another one; mixed precision; a Jacobian that is NaN,
            with its row and parameter.
        MemoryError: the Jacobian of one row is over the budget. OSError: the temporary folder is full.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"a torch.nn.Module is needed, got {type(module).__name__}.")
    validation.choice("output", output, OUTPUTS)
    axes = axes_of(output, trace_axes, diagonal_axes)
    budget = 0.0 if memory is None else validation.finite_scalar("memory", memory, above=0.0)
    for name, function in (("of", of), ("progress", progress)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function, got {validation.shown(function)}.")
    module = getattr(module, "_orig_mod", module)
    check_mode(module)
    trained = trained_parameters(module, parameters)
    sums = tuple((name, bits(t)) for name, t in module.named_parameters())
    buffers = tuple((name, t.detach().cpu().clone()) for name, t in module.named_buffers())
    kind = ModuleDiagonal if axes.output is None else _CLASSES[output]
    return kind(
        ModuleJacobian(
            module, tuple(trained), sums, buffers, layers_of(module), of, axes, budget, progress or no_progress
        )
    )
