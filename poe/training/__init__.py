"""Losses for energies, and densities fitted to samples."""
