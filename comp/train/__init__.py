"""A fold from arrays to its files: the loop, one step, the schedule, checkpoints, the run on disk."""
