"""npz files to checked arrays, folds, augmented batches; the demo's drawn data."""
