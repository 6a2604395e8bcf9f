"""The verb `fit`: from a plan to a trained model, new, continued or cured."""
