"""Submission files: written, checked as Kaggle checks them, kept in a ledger."""
