"""ma2mba trains and runs Video-Ma2mba (arXiv 2411.19460): hours of video at 1 FPS on one GPU."""

__version__ = "0.1.0"
