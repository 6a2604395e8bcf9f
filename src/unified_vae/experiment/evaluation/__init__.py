"""Finished models measured: one (`evaluate`), or several side by side (`compare`)."""
