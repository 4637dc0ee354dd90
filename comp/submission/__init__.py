"""Submission files: written, and checked as Kaggle checks them."""
