"""The command line: parsing, errors and exit codes; what a command prints is in unified_vae.console."""
