"""One loop that steps kernels: shards, processes, compiled blocks, checkpoints."""
