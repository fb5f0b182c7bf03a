"""`ma2mba serve`: many visitors ask one model about their videos, over an OpenAI-compatible interface and a page."""
