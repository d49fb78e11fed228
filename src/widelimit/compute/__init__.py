"""Only this package allocates and factorises n x n arrays. It knows nothing of networks."""
