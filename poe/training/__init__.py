"""Losses for energies (`losses`), contrastive divergence (`divergence`), and densities fitted to
samples (`fitting`). It may use all folders below `sampling`, and `sampling`; it reaches experts
through the registry only."""
