"""`empirical_ntk` and `empirical_nngp` make kernels from a user's function and its parameters."""

from collections.abc import Sequence
from typing import Any, Literal, overload

from widelimit.kernels.empirical.kernels import EmpiricalAxes, EmpiricalDiagonal, EmpiricalKernel, EmpiricalMatrixKernel
from widelimit.kernels.empirical.model import Apply, Model, Names, Select, model
from widelimit.kernels.empirical.outputs import Output, axis_option
from widelimit.kernels.empirical.plan import KernelSettings, Method, check_settings

AnyEmpirical = EmpiricalMatrixKernel | EmpiricalKernel | EmpiricalDiagonal | EmpiricalAxes
_CLASSES: dict[Output, type[AnyEmpirical]] = {
    "full": EmpiricalMatrixKernel,
    "trace": EmpiricalKernel,
    "diagonal": EmpiricalDiagonal,
}


@overload
def empirical_ntk(
    apply: Apply,
    params: Any,
    *,
    output: Literal["full"] = "full",
    of: Select | None = None,
    parameters: Names | None = None,
    method: Method = "auto",
    memory: float | None = None,
) -> EmpiricalMatrixKernel: ...
@overload
def empirical_ntk(
    apply: Apply,
    params: Any,
    *,
    output: Literal["trace"],
    of: Select | None = None,
    parameters: Names | None = None,
    method: Method = "auto",
    memory: float | None = None,
) -> EmpiricalKernel: ...
@overload
def empirical_ntk(
    apply: Apply,
    params: Any,
    *,
    output: Literal["diagonal"],
    of: Select | None = None,
    parameters: Names | None = None,
    method: Method = "auto",
    memory: float | None = None,
) -> EmpiricalDiagonal: ...
@overload
def empirical_ntk(
    apply: Apply,
    params: Any,
    *,
    trace_axes: Sequence[int],
    diagonal_axes: Sequence[int] = (),
    of: Select | None = None,
    parameters: Names | None = None,
    method: Method = "auto",
    memory: float | None = None,
) -> EmpiricalAxes: ...
def empirical_ntk(
    apply: Apply,
    params: Any,
    *,
    output: Output = "full",
    trace_axes: Sequence[int] | None = None,
    diagonal_axes: Sequence[int] = (),
    of: Select | None = None,
    parameters: Names | None = None,
    method: Method = "auto",
    memory: float | None = None,
) -> AnyEmpirical:
    """Theta(x, x')[a, b] = sum_p df_a(x)/dtheta_p df_b(x')/dtheta_p, the neural tangent kernel of a finite network.

    Under gradient flow on theta the outputs follow kernel gradient descent with this kernel (equation 3.3 of the
    paper). At infinite width it tends to ntk(net) times the identity (Theorem 4.1).

    Args:
        apply: f(params, X), written with jax.numpy, whose output for a row depends on that row alone: net.apply; a
            plain function; lambda m, X: jax.vmap(m)(X) for an Equinox module m; for a Flax module
            lambda p, X: module.apply({"params": p}, X). X is an array (n, ...) of floats, integers (token ids) or
            booleans, or a tuple or dictionary of such arrays with as many rows; outputs are (n,), (n, c), arrays with
            more axes, or a tree of them. `apply` gets X in the form in which the kernel gets it.
        params: a pytree of float32 or float64 arrays, or an Equinox module, whose float arrays are the parameters.
            They are converted to the dtype of X, which must keep their digits; if X has no floats, they stay.
        output: "full" for all c x c pairs of outputs, a matrix-valued kernel; "trace" for the mean over outputs, a
            scalar kernel like all others; "diagonal" for Theta[a, a], one kernel for each output. Outputs with more
            axes, and all leaves of a tree, are joined to c numbers for each row.
        trace_axes: in place of `output`, axes of the outputs over which the kernel is averaged, counted without that of
            the rows. All pairs of positions along other axes are kept, in an `EmpiricalAxes`.
        diagonal_axes: axes whose positions are paired with themselves only.
        of: a function of the outputs and X, both for all rows, whose result (n,), (n, c) or with more axes takes the
            place of the outputs: some of them, a loss, the log-probability of a label that is part of X.
        parameters: the parameters to differentiate: shell patterns over their dotted names, such as "blocks.0.*", or a
            function of a name; all unless given. Other leaves of `params` may then have any dtype.
        method: "layerwise" contracts one parameter after the other; where one enters a matrix product, a convolution or
            an embedding, it uses forward and backward signals in place of gradients if that costs less. "jacobian"
            contracts the whole Jacobians of some rows at a time. "vector_products" computes a column at a time, by a
            product with the transposed Jacobian and one with the Jacobian. "auto" takes the method of fewest flops
            within `memory`. All have the same values; `explain(X)` of the kernel compares them.
        memory: GiB that one call may take, its result included; half of what is free unless given.

    Returns:
        An `EmpiricalMatrixKernel` ("full"), `EmpiricalKernel` ("trace"), `EmpiricalDiagonal` or `EmpiricalAxes`, each
        with gram, cross, diag, parts and explain, all but the last with matvec; float32 or float64 as X is.

    Raises:
        TypeError, ValueError: not a function, parameters that are not finite floats, an unknown option, a pattern that
            names no parameter. When the kernel is called: a function that fails on the inputs, returns another shape,
            or mixes rows (checked at a few rows, alone and together); integers that the dtype would round; a Jacobian
            that is NaN, with its row and parameters.
        MemoryError: when the kernel is called, before anything is computed: no method stays within the budget.
    """
    f = model(apply, params, parameters, of)
    return _kernel(f, check_settings("ntk", output, method, memory), trace_axes, diagonal_axes)


@overload
def empirical_nngp(
    apply: Apply,
    params: Any,
    *,
    output: Literal["full"] = "full",
    of: Select | None = None,
    memory: float | None = None,
) -> EmpiricalMatrixKernel: ...
@overload
def empirical_nngp(
    apply: Apply, params: Any, *, output: Literal["trace"], of: Select | None = None, memory: float | None = None
) -> EmpiricalKernel: ...
@overload
def empirical_nngp(
    apply: Apply, params: Any, *, output: Literal["diagonal"], of: Select | None = None, memory: float | None = None
) -> EmpiricalDiagonal: ...
@overload
def empirical_nngp(
    apply: Apply,
    params: Any,
    *,
    trace_axes: Sequence[int],
    diagonal_axes: Sequence[int] = (),
    of: Select | None = None,
    memory: float | None = None,
) -> EmpiricalAxes: ...
def empirical_nngp(
    apply: Apply,
    params: Any,
    *,
    output: Output = "full",
    trace_axes: Sequence[int] | None = None,
    diagonal_axes: Sequence[int] = (),
    of: Select | None = None,
    memory: float | None = None,
) -> AnyEmpirical:
    """K(x, x')[a, b] = f_a(x) f_b(x'), the second moments of the outputs; output="trace": (1/c) sum_a f_a(x) f_a(x').

    Its mean over random parameters is the covariance of the outputs, which for net.apply and parameters of net.init
    tends to nngp(net) times the identity at infinite width (Theorem 2.6 of the paper). One network estimates it by
    the trace over its c = output_dim outputs, with an error of order c^{-1/2}.

    Args, Returns, Raises: as `empirical_ntk`.
    """
    f = model(apply, params, select=of)
    return _kernel(f, check_settings("nngp", output, "auto", memory), trace_axes, diagonal_axes)


def _kernel(
    f: Model, settings: KernelSettings, trace_axes: Sequence[int] | None, diagonal_axes: Sequence[int]
) -> AnyEmpirical:
    traced = () if trace_axes is None else trace_axes
    axes = axis_option("trace_axes", traced), axis_option("diagonal_axes", diagonal_axes)
    if trace_axes is None and not diagonal_axes:
        return _CLASSES[settings.output](f, settings)  # type: ignore[index]
    if settings.output != "full" or settings.method == "vector_products":
        raise ValueError(
            'trace_axes and diagonal_axes take the place of output="trace" and "diagonal", and '
            'method="vector_products" is not for them: leave these out.'
        )
    return EmpiricalAxes(f, settings, *axes)
