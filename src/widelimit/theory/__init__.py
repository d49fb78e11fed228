"""Infinite width predicts more than one training set: learning curves, finite width, lazy training."""
