"""Pairs of images are computed by machine code that is made from the layers' own pair maps."""
