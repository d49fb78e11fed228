"""A network is a composition of layers that state their finite and their infinite map side by side."""
