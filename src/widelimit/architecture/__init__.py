"""What a network is: layers that state their finite and their infinite map side by side, and their composition."""
