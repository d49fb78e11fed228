"""The cells of grids that `make test` leaves to `make test-grids`, and what it runs in their place.

A cell may be left out where another one that stays takes the same code, and where what it varies (an activation, a
layer, a dtype, a planted error) is varied in a test that stays. No test is in neither target.
"""

import fnmatch

STAY = {
    # Activations: every one keeps its dual in both dtypes, its derivative, and its ends in float64.
    "test_activations.py::test_networks": ("sign", "gelu", "exp"),
    "test_activations.py::test_pairs_at_the_ends": ("float64-*", "float32-relu", "float32-erf", "float32-gelu"),
    "test_piecewise.py::test_duals_against_quadrature": ("hard_tanh", "all kinds"),
    "test_piecewise.py::test_tables_are_the_closed_forms": ("hard_swish-*", "bends*"),
    # Trees of layers: every one keeps both kernels to 64 eps, without compilation.
    "test_architectures.py::test_both_kernels_to_64_eps": (
        *("float64-residual", "float64-normalised residual", "float64-side by side", "float64-frozen"),
    ),
    "test_architectures.py::test_inputs_of_any_scale": ("*-residual", "float32-15-scaled by layer"),
    "test_architectures.py::test_limits_are_both_kernels": ("*-residual", "*-dropped out"),
    "test_architectures.py::test_the_series_for_equal_norms_is_that_of_the_layers": ("layers0-*", "layers3-*"),
    "test_gradients_at_cusps.py::test_every_transformation_gives_the_limit_of_central_differences": (
        *("relu-*", "abrelu-ntk", "rectified_power-ntk", "sign-nngp"),
    ),
    "test_architectures.py::test_learning_rates_multiply_the_part_of_each_layer": ("standard",),
    "test_architectures.py::test_branches_that_read_rows": ("relu",),
    "test_architectures.py::test_empirical_kernels_see_every_parameter_once": ("residual",),
    "test_layers.py::test_the_finite_map_has_the_moments_of_the_infinite_one": (
        *("normalise", "drop out", "sum", "concatenate", "product", "dense*", "activate"),
    ),
    "test_gradients_at_cusps.py::test_relu_one_by_one": ("ntk-float64",),
    "test_gradients_at_cusps.py::test_second_derivatives_of_the_nngp_kernel": ("relu",),
    "test_centred_activations.py::test_a_norm_after_an_activation_to_64_eps": ("gaussian", "cos", "polynomial"),
    "test_centred_activations.py::test_compiled_programs_in_float32_at_any_scale": ("gaussian",),
    "test_centred_activations.py::test_layers_between_an_activation_and_a_norm": ("two", "repeated"),
    "test_centred_activations.py::test_tabulated_activations_that_are_nearly_linear": ("softplus",),
    # Networks of one activation: each keeps its laws at depth 3, in both kernels and dtypes.
    "test_kernels.py::test_laws": ("*-depth3-*-ntk", "relu-depth[31]*", "erf-depth3-*-nngp", "erf-depth12-*-ntk"),
    "test_kernels.py::test_jax_arrays_stay_jax_arrays": ("ntk",),
    "test_kernels.py::test_gradients_are_finite_everywhere": ("*-relu", "*-erf"),
    "test_kernels.py::test_gradients_equal_finite_differences": ("*-relu", "*-erf"),
    "test_kernels.py::test_finite_networks_have_the_limits_tangent_kernel": ("relu", "erf"),
    "test_kernel_values.py::test_the_other_closed_forms": ("float64-leaky_relu",),
    "test_kernel_values.py::test_chaotic_networks": ("float64-*",),
    "test_numerical.py::test_equal_norms_give_the_layers_to_64_eps": ("relu-ntk", "erf-ntk"),
    "test_recurrent.py::test_recurrent_kernels_to_64_eps": ("last", "all"),
    "test_uses_of_trees.py::test_every_use_of_every_tree": (
        "residual",
        "normalised residual",
        "side by side",
        "frozen",
    ),
    "test_uses_of_trees.py::test_a_matrix_on_disk_goes_on_where_it_was_killed": ("alike but for numbers",),
    # Inference: every solver against eigenvectors; every door of a first call in one kernel.
    "test_solvers.py::test_without_noise_too": ("full", "mixed", "single", "disk"),
    "test_first_call.py::test_few_programs_and_none_for_other_data": (
        *("ntk", "gelu", "a new function", "sum", "posterior", "flow", "regressor", "evidence", "own network"),
    ),
    "test_tables.py::test_other_norms_compile_nothing": ("tanh", "hard_tanh"),
    "test_traced.py::test_derivatives_agree_with_sixty_digits": ("mean", "evidence", "left out, variance", "flow"),
    "test_traced.py::test_derivatives_through_duplicates_without_noise": ("variance-*", "flow-inf-*"),
    "test_traced.py::test_noise_of_any_size_is_solved_as_without_a_trace": ("one row of large noise",),
    # Estimators: scikit-learn's checks of one regressor and one classifier with one network, and of the search.
    "test_estimators.py::test_scikit_learn_checks": (
        *("NNGPRegressor*", "NTKClassifier*", "WideRegressor*", "NTKFeatures*", "TableEncoder*"),
        *("*-check_estimators_pickle", "*-check_fit_idempotent", "*-check_classifiers_train"),
    ),
    "test_persistence.py::test_every_forged_field_is_refused_or_harmless": ("dirichlet", "one class", "network"),
    "test_outputs.py::test_outputs_without_news_do_not_change_how_the_others_are_fitted": (
        *("NNGPRegressor-marginal_*", "NTKRegressor-leave_one_out"),
    ),
    "test_logistic.py::test_class_weight_multiplies_sample_weight": ("three-dirichlet", "two-logistic"),
    "test_rkhs.py::test_shallow_relu_without_bias_sees_no_odd_degree_from_three_on": ("3",),
    "test_empirical_use.py::test_taylor_is_exact_for_polynomials_of_its_order": ("1", "2"),
    "test_given_networks.py::test_scales_are_learned_with_a_network_and_kept_in_files": ("nngp", "agop", "classes"),
    # Pages of the documentation, which `make docs` builds.
    "test_structure.py::test_the_code_in_the_documentation_runs": (
        *("README.md", "docs/tour.md", "docs/estimators.md", "docs/architectures.md", "docs/empirical.md"),
        *("docs/extending.md", "docs/solvers.md"),
    ),
    "test_cli_process.py::test_a_signal_ends_the_command_at_any_moment": (
        *("*-typer", "*-jax._src.core", "*-c/0/0", "*-c/1/1"),
    ),
    "test_numerical.py::test_kernels_are_positive_semidefinite": ("tanh", "elu", "hard_swish"),
    "test_native.py::test_both_kernels_to_64_eps": (
        *("odd sizes", "strides", "residual", "frozen before a pool", "layers of one site"),
    ),
    "test_numerical.py::test_elu_against_its_closed_form": ("elu",),
    "test_numerical.py::test_kernels_of_a_tabulated_activation_are_those_of_the_closed_form": ("ntk",),
    "test_device_tiles.py::test_large_tiles_have_the_digits_of_the_processor": ("float64",),
    "test_devices.py::test_a_posterior_on_a_device_is_that_of_the_host": ("cholesky", "cg-mixed"),
    # Empirical kernels: test_empirical_layers.py has every kind of layer against explicit Jacobians.
    "test_empirical.py::test_all_algorithms_and_outputs_give_the_explicit_contraction": (
        *("relu", "erf, mean field, one output", "plain", "side by side", "frozen within"),
    ),
    "test_empirical_layers.py::test_no_layer_that_is_read_is_refused": (
        *("dense", "attention", "conv", "group norm", "embedding", "tied", "scan"),
    ),
    "test_empirical_forms.py::test_axes": ("trace2-*",),
    "test_empirical_forms.py::test_trees_of_arrays_and_outputs_of_more_axes": ("layerwise",),
    "test_empirical_forms.py::test_some_parameters": ("layerwise-*",),
    "test_memory.py::test_a_little_more_is_enough": ("flow", "ensemble", "covariance", "conjugate gradients"),
    "test_input_scales.py::test_the_objective_is_that_of_the_library_and_has_its_gradient": (
        *("nngp-erf-2", "ntk-relu-3", "nngp-rbf-2"),
    ),
    "test_mixed_rows.py::test_functions_of_single_rows_are_not_refused": ("*-float64",),
    "test_inference.py::test_what_tables_leave_of_a_zero_eigenvalue_is_no_negative_variance": ("softplus",),
}
"""{test: patterns of the cells that stay in `make test`}; its other cells are left out."""

COVERED = {
    "test_recurrent.py::test_fixed_maps_that_are_other_layers": "test_recurrent.py::test_mixed_sites_to_64_eps",
    "test_explorer.py::test_finite_networks_are_trained_towards_the_limit": (
        "test_finite.py::test_trained_networks_tend_to_kernel_descent_from_their_own_start"
    ),
    "test_benchmarks.py::test_uci_runs_resumes_and_reports": (
        "test_cli_models.py::test_benchmark_scores_are_those_of_a_loop_by_hand"
    ),
    "test_empirical_use.py::test_taylor_of_an_equinox_module": (
        "test_empirical_use.py::test_taylor_is_exact_for_polynomials_of_its_order"
    ),
    "test_gaussian_process.py::test_tabulated_activations_are_fitted_by_either_gradient": (
        "test_gaussian_process.py::test_the_gradient_of_the_marginal_likelihood_equals_differences"
    ),
    "test_cli_structured.py::test_the_session_of_the_documentation": (
        "test_cli_structured.py::test_fit_predict_and_kernel_of_a_table"
    ),
    "test_cli_process.py::test_what_scikit_learn_imports_for_little_comes_at_its_first_use": (
        "test_cli.py::test_help_is_quick_and_loads_nothing_heavy"
    ),
}
"""{test that is left out as a whole: the test in `make test` that takes the same code, of another kind or size}."""


def parted(node):
    """Return the test ("test_x.py::test_y") and the cell ("" if it has none) of pytest's name of a node."""
    path, _, name = node.partition("::")
    test, _, cell = name.partition("[")
    return f"{path.rpartition('/')[2]}::{test}", cell.removesuffix("]")


def left_out(node):
    """Return True if `make test` leaves this one to `make test-grids`."""
    test, cell = parted(node)
    stay = STAY.get(test)
    return test in COVERED or (stay is not None and not any(fnmatch.fnmatchcase(cell, pattern) for pattern in stay))


def faults(nodes):
    """List what is wrong with the tables, given the names of all tests."""
    cells = {}
    for test, cell in map(parted, nodes):
        cells.setdefault(test, []).append(cell)
    found = [f"{test} is no test" for test in {*STAY, *COVERED, *COVERED.values()} if test not in cells]
    found += [f"{test} is covered by {by}, which is left out itself" for test, by in COVERED.items() if by in COVERED]
    for test in STAY.keys() & cells.keys():
        found += [f"{test}: {pattern} is no cell" for pattern in STAY[test] if not fnmatch.filter(cells[test], pattern)]
        if not any(left_out(f"{test}[{cell}]") for cell in cells[test]):
            found.append(f"{test} has no cell that is left out")
    return found
