"""What infinite width predicts beyond one training set: learning curves, and corrections of order 1/width."""
