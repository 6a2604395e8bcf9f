"""Every setting of a run, the preset book, and where each value came from. Importing these does not import torch."""
