"""What infinite width predicts beyond one training set: learning curves."""
