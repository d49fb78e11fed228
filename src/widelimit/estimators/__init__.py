"""The scikit-learn estimators validate, call the library, store. They have no mathematics of their own."""
