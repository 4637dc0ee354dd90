"""Folds and runs blended, decisions found, the test set predicted, the submission made."""
