"""The side door, every preset chosen one by one:

uv run train_unified.py --loss-preset high_quality --training-preset fast_high_quality_training
                        --model-preset fast_high_quality --dataset-preset full
"""

from unified_vae.cli.run_presets import main

if __name__ == "__main__":
    raise SystemExit(main())
