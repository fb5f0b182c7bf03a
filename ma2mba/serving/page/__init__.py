"""The page at `/`: choose a video, watch it being read, ask."""
