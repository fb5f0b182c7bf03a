"""The results of the paper (arXiv 2411.19460): accuracies in percent, for charts beside one's own."""

from dataclasses import dataclass

MODELS = ("0.7B", "1.8B", "3.1B")
"""The paper's three models by their size with the vision encoder; their backbones are 370M, 1.3B and 2.7B."""

RESULTS: dict[str, dict[str, tuple[float, float, float]]] = {
    "video-mme": {
        "short": (37.4, 49.4, 57.6),
        "medium": (35.0, 39.2, 42.7),
        "long": (26.8, 31.9, 35.4),
        "all": (33.1, 40.3, 45.2),
    },
    "longvideobench": {"all": (34.0, 38.0, 43.0)},
    "activitynet-qa": {"all": (43.8, 50.0, 51.7)},
    "mvbench": {"all": (41.1, 44.4, 48.3)},
}
"""Benchmark -> length group ("all": all questions) -> the accuracy of each model, at one frame per second."""

NOTES = {
    "longvideobench": "the paper's figures are of the validation set",
    "activitynet-qa": "the paper's figures were judged by a language model, not by exact match",
}
"""What makes a figure of the paper another one than ours."""

VIDEO_MME_BY_FRAMES = {"8": 41.6, "16": 43.7, "32": 44.6, "1fps": 45.2}
"""The accuracy of the 3.1B model on Video-MME, by the frames at inference."""


@dataclass(frozen=True)
class Published:
    """What the paper reports: length group -> model -> percent. `note`: what makes it another figure than ours."""

    percent: dict[str, dict[str, float]]
    note: str


def published(benchmark: str, frames: str) -> Published | None:
    """Return the paper's results to compare an accuracy with, None if it has none. `frames` as `--frames`."""
    if benchmark not in RESULTS:
        return None
    if benchmark == "video-mme" and frames in VIDEO_MME_BY_FRAMES and frames != "1fps":
        return Published({"all": {MODELS[-1]: VIDEO_MME_BY_FRAMES[frames]}}, "")
    percent = {group: dict(zip(MODELS, values, strict=True)) for group, values in RESULTS[benchmark].items()}
    notes = [NOTES.get(benchmark, ""), "" if frames == "1fps" else "the paper saw 1 frame per second"]
    return Published(percent, "; ".join(filter(None, notes)))
