"""What is read and written: expressions as text, energies in files, records of runs."""
