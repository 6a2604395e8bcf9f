"""What a verb looks at: a run, a checkpoint or a model folder, its weights and its images."""
