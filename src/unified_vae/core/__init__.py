"""What all packages share: errors, files, random numbers, devices, checkpoints."""

__version__ = "0.1.0"
