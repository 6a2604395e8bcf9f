"""The built-in set: cartoon faces drawn from a seed, with labels."""
