"""Which way to draw, and drawing: plans, methods, log Z, modes."""
