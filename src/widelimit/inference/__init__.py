"""A kernel predicts by Bayes, gradient flow, and the ensemble of all trained networks, all in float64."""
