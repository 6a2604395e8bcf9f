"""Verbs on a finished model that make images or latents: sample, reconstruct, interpolate, encode, decode, edit."""
