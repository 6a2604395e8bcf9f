"""What theory and measurement say of a model and its data."""
