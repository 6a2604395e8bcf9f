"""Train an image VAE with every preset chosen one by one:

uv run train_unified.py --loss-preset high_quality --training-preset fast_high_quality_training
                        --model-preset fast_high_quality --dataset-preset full
"""

try:
    from unified_vae.cli.app import main
except KeyboardInterrupt:  # while Python loads: nothing has begun
    raise SystemExit(130) from None

if __name__ == "__main__":
    raise SystemExit(main("train_unified.py"))
