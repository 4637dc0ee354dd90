"""Folds and runs blended, the test set predicted, the submission made."""
