"""The front door: uv run train.py --mode fast_high_quality

`--help` shows the options, `--list-presets` the modes. train_unified.py is the door with every choice.
"""

from unified_vae.cli.run_mode import main

if __name__ == "__main__":
    raise SystemExit(main())
