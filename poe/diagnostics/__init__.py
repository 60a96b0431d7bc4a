"""What speaks for draws, and what they come with."""
