"""What a loss needs besides arrays: its inputs, its weight's schedule, trainable adapters, memories, and its method."""
