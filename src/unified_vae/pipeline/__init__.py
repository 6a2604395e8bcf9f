"""The composition root: from a request to a trained run, in the order in which it happens."""
