"""Which run, in which folder, continuing or curing what. Importing these does not import torch."""
