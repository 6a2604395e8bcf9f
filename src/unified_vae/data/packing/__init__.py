"""From files to one packed array a split: survey, decode, split, pack, and the cache that keeps it."""
