"""The table of methods, one file each, and what follows it: `sample`, `plan`, `log_z`, `mode`, and
how combined posteriors agree. Imports all folders of poe but training, testing and cli."""
