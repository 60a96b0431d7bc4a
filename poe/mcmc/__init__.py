"""The run loop of Markov chains: shards with their own random streams, processes, compiled blocks
and checkpoints. It may use `algebra`, `spaces`, `io`, `kernels`, `plotting` and `diagnostics`."""
