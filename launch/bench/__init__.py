"""Benchmarks: `python -m launch.bench NAME`, one JSON object a line on standard output."""
