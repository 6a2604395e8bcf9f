"""What is measured and never optimised."""
