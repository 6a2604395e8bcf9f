"""Trained models: load, encode, decode, sample, save; `from unified_vae import VAE`."""
