"""A user's own network is used through its gradients: sketches, attribution, selection, drift of the kernel."""
