"""unified-vae: one trainer for image VAEs."""
