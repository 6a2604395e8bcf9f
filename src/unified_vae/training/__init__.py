"""Training: the loop, its steps, averaged weights, validation, checkpoints, logs, and the ranks of a run."""
