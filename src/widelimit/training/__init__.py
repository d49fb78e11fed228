"""Training of finite networks, with what the theory of infinite width speaks about recorded on the way."""
