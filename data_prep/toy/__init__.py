"""A toy corpus: rendered videos with known content, for tests, demonstrations and needle evaluations."""
