"""The door to a diagnosis: uv run diagnose.py runs/fast_high_quality

It names the one cause of blur or of poor samples, the figures that say so, and the command to run next.
"""

from unified_vae.cli.run_diagnose import main

if __name__ == "__main__":
    raise SystemExit(main())
