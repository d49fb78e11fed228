"""Columns of a table become inputs of a model: numbers, categories, ranks, dates, and flags of missing values."""
