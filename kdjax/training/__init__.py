"""Training: the one loop for every stage, the compiled step, and what they read."""
