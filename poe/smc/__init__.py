"""Populations carried along paths, levels of noise and orderings; where they start."""
