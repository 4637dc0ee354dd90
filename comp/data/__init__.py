"""npz in: arrays, checked and mapped; folds; augmentation; batches."""
