"""Polynomials between kinks have duals in closed form: hard tanh, hard swish, relu6, clip, shrinkage.

phi'' is a polynomial between kinks plus point masses at them. By Price's theorem dE[phi(u) phi(v)]/dc = E[phi'(u)
phi'(v)], and once more the derivative of that is E[phi''(u) phi''(v)]: a sum over pairs of kinks of the bivariate
normal density at (kink, kink') and of its integrals. Integrating back over the angle gives the dual:

- `parity`: the even and the odd part of phi, each from its values at u > 0, and the sums over pairs of kinks.
- `bivariate_normal`: the integrals over the angle of the density at a pair of kinks.
- `closed_form`: the dual, from both.
- `polynomial`: the activation that users see, `PiecewisePolynomial`.
- `tabulation`: the same as a table (`widelimit.activations.tabulated`), at a tenth of the cost.
"""
