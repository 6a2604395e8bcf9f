"""The version, in one place: builds read it from here, and a source tree that is not installed knows it too."""

__version__ = "0.1.0"
