"""What is measured and never optimized."""
