"""Rendered videos with a known content: for tests, demonstrations and needle evaluations of any length."""
