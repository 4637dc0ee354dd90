"""Submission files: written, checked as Kaggle checks, kept in a ledger."""
