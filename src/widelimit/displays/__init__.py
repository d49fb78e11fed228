"""Displays show what a fitted estimator does, in scikit-learn's convention: from_estimator, plot, ax_, figure_."""
