"""Render videos with known content, for toy data, tests and needle evaluations."""
