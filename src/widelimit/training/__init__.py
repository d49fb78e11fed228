"""Finite networks are trained; the quantities of the theory of infinite width are recorded."""
