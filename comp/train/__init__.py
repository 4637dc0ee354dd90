"""One fold from arrays to its files: the loop, the step, the schedule, a run on disk and its page."""
