"""Diagnose a run: uv run diagnose.py runs/fast_high_quality

It names the one cause of blur or of poor samples, the metrics that show it, and the command to run next.
"""

try:
    from unified_vae.cli.app import main
except KeyboardInterrupt:  # while Python loads: nothing has begun
    raise SystemExit(130) from None

if __name__ == "__main__":
    raise SystemExit(main("diagnose.py"))
