"""Studies: many runs of one store, and what they say together."""
