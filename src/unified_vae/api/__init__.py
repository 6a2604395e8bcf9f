"""A trained model in a few lines: `from unified_vae import VAE`."""
