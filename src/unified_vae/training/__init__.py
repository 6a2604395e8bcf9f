"""How a step is taken: runtime, loop, checkpoints, EMA, signals; and observers, which only watch."""
