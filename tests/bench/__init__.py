"""Benchmarks: each prints one JSON object with machine, versions and figures measured in that run."""
