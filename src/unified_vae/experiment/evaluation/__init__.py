"""Verbs that measure finished models: evaluate one, compare several."""
