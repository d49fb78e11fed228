"""scikit-learn estimators: validate, call the library, store. No mathematics of their own."""
