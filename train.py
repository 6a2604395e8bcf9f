"""Train an image VAE by a named mode: uv run train.py --mode fast_high_quality

`--help` shows the options, `--list-presets` the modes. train_unified.py takes every preset one by one.
"""

try:
    from unified_vae.cli.app import main
except KeyboardInterrupt:  # while Python loads: nothing has begun
    raise SystemExit(130) from None

if __name__ == "__main__":
    raise SystemExit(main("train.py"))
