"""The duals of any activation come from quadrature, and are tabulated as short series.

With f_s(z) = phi(s z)/sqrt(E[phi(s z)^2]) the correlation after phi is R(psi; s, t) = <f_s, f_t> - gap H(psi; s,
t), psi the angle of the two signals and gap = 1 - cos(psi) (`tables`). H is analytic in psi and in s/(s + sigma),
with kinks at 0 or without, so that Chebyshev series in both converge fast:

- `polar` and `widelimit.gaussian` integrate: E[phi'(u) phi'(v)] at Chebyshev points of the angle and the
  deviations.
- `moments` integrates E[phi(s z)^2]; `chebyshev` turns values into coefficients.
- `expansions` writes H as a short sum of products: a function of one signal times one of the other times one of the
  angle.
- `coincident` adds what is not analytic: kinks of two signals (or of one and the mirror image of the other) that
  coincide.
- `fixed_lengths` and `chunks` give all tables of a kind the same shapes, so that a compiled program serves other
  data.
- `lookup` evaluates a table at the signals of a kernel; `numerical` is the activation that users see.
"""
