"""Studies: many runs in one store and what they show together. One file per study; `kinds.py` has their table."""
