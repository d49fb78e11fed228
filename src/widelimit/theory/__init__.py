"""What infinite width predicts beyond one training set: learning curves, finite width, lazy training."""
