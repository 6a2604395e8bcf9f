"""The preset book: JSON with places, layers of settings, composition with the origin of each value."""
