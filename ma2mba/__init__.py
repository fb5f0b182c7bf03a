"""ma2mba trains and runs Video-Ma2mba (arXiv 2411.19460): hours of video at 1 FPS on one GPU."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `VideoChat` when it is asked for: `import ma2mba` stays quick."""
    if name == "VideoChat":
        from ma2mba.inference.chat import VideoChat

        return VideoChat
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
