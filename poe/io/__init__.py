"""Expressions as text, energies in files, the zoo, records of runs. It may use `algebra` and
`registry`."""
