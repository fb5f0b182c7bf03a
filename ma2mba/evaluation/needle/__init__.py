"""Needles in a haystack: a symbol in a long video, at each depth of each length, and what the model finds."""
