"""One fold from arrays to its files: the loop, the step, the schedule, checkpoints, a run on disk."""
