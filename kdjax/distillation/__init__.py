"""What a loss needs besides arrays: trainable adapters, memories, and the table of methods."""
