"""Inspection of stored runs: outputs, analyses, class-activation maps, and weights from files and to files."""
