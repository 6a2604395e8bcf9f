"""A trained model as files for other programs: written, opened again, compared."""
