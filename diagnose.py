"""The door to a diagnosis: uv run diagnose.py runs/fast_high_quality

It names the one cause of blur or of poor samples, the figures that say so, and the command to run next.
"""

try:
    from unified_vae.cli.run_diagnose import main
except KeyboardInterrupt:  # while Python loads: nothing has begun
    raise SystemExit(130) from None

if __name__ == "__main__":
    raise SystemExit(main())
