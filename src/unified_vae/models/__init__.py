"""Image -> posterior -> image."""
