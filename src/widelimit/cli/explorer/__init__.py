"""This package contains the page of `widelimit explore`, and the server that computes its numbers."""
