"""The duals of these activations have a closed form.

For signals u = s z, v = t z' of correlation rho, (z, z') standard normal, a dual is E[phi(u) phi(v)]. Each file
derives its own from one idea:

- `linear`: phi is linear on both sides of 0. E[u_+ v_+] = s t (sin(theta) + (pi - theta) cos(theta))/(2 pi), theta
  = acos(rho).
- `arc_cosine`: powers of max(u, 0), and jumps at 0. The kernels of Cho and Saul 2009: polynomials in theta, sin and
  cos.
- `erf`: erf and gelu. E[erf(u) erf(v)] = (2/pi) asin(2 c/sqrt((1 + 2 s^2)(1 + 2 t^2))), c = s t rho (Williams
  1997).
- `exponentials`: exp(a u) and exp(-b u^2). E[exp(u + v)] is the moment generating function of a bivariate normal
  law.
- `trigonometric`: sine, cosine, snake. E[cos(u - v)] comes from the characteristic function of that law.
- `polynomials`: phi = sum_k a_k h_k with Hermite polynomials h_k. E[h_j(z) h_k(z')] = rho^k if j = k, else 0
  (Mehler).

All return the gap 1 - abs(rho) after phi without cancellation (`widelimit.signals`), and the slope of the
correlation map, which is E[phi'(u) phi'(v)] up to the scale (Price 1958).
"""
