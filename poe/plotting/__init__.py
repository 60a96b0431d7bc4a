"""Figures of densities and of draws, in matplotlib. It may use `io`, `algebra` and `registry`."""
