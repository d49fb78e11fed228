"""The paper's statements are experiments that can fail: one file a claim, run by `widelimit verify`."""

NAMES: tuple[str, ...] = (
    "gaussian_vectors",
    "networks_are_gaussian",
    "outputs_are_independent",
    "order_of_limits",
    "bayesian_inference",
    "function_space_velocity",
    "minimum_norm_weights",
    "primal_is_dual",
    "gram_matrices",
    "reproducing_kernels",
    "linear_regression",
    "descent_of_the_cost",
    "tangent_kernel_limit",
    "tangent_kernel_constancy",
    "trained_networks",
    "definite_on_the_sphere",
    "minimum_norm_functions",
    "norm_and_generalisation",
    "where_theory_stops",
    "jacot_figures",
    "residual_depth",
    "pooling_averages_shifts",
    "learning_curves",
    "transformer_limit",
)
"""The modules of this package that hold a claim, in the order of the paper, then those of other architectures."""
