"""The front door: uv run train.py --mode fast_high_quality

`--help` shows the options, `--list-presets` the modes. train_unified.py is the door with every choice.
"""

try:
    from unified_vae.cli.run_mode import main
except KeyboardInterrupt:  # while Python loads: nothing has begun
    raise SystemExit(130) from None

if __name__ == "__main__":
    raise SystemExit(main())
