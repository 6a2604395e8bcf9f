"""Pixels in: sources, decoding, the packed cache, the split, batches."""
