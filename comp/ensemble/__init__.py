"""Folds and runs blended into labels."""
