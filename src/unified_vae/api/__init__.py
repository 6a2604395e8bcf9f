"""The models as people use them: images in and out, in a few lines of Python."""
