"""A finished run as one page to read: figures, curves, pictures, diagnosis, settings."""
