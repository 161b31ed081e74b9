"""Benchmarks: commands that print a table of measurements. Tests run them and assert no times."""
