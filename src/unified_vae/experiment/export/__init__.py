"""A finished model in the formats of other tools, each loaded back and compared before it counts."""
