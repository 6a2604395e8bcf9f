"""What a run is, and the verbs on it: compose, fit, fix. The only composition root."""
