"""Benchmarks: commands that print a table of measurements, never timed tests."""
