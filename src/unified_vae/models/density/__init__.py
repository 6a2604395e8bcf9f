"""Densities of the latents, fitted after training: what to sample from instead of N(0, I)."""
