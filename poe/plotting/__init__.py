"""What densities and draws look like."""
