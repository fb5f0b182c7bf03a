"""A Video-Ma2mba model for VLMEvalKit. Copy this file to vlmeval/vlm/ma2mba.py (docs/lmms_eval.md).

Then add a line to vlmeval/vlm/__init__.py: `from .ma2mba import Ma2mba`, and an entry to `video_models` in
vlmeval/config.py: `"ma2mba": partial(vlm.Ma2mba, model_path="DIR")`.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmeval.vlm.base import BaseModel

from ma2mba import VideoChat
from ma2mba.errors import UserError
from ma2mba.evaluation.harness import Medium, Prompt, Responder, local_file
from ma2mba.inference.sampling import Sampling

log = logging.getLogger(__name__)


class Ma2mba(BaseModel):
    """`model_path`: a model folder or a run folder.

    VLMEvalKit sets `nframe` and `fps` to those of the data set: `nframe` frames of each video, or one frame per second.
    A data set that gives videos without either is watched at one frame per second.
    """

    INTERLEAVE = True
    VIDEO_LLM = True
    is_api = False

    def __init__(
        self, model_path: Path | str, device: str = "auto", dtype: str = "auto", max_new_tokens: int = 256, **_: Any
    ):
        super().__init__()
        self.nframe: int | None = 8
        self.fps: float | None = 1.0
        self._responder = Responder(VideoChat.open(model_path, device, dtype))
        self._sampling = Sampling(temperature=0.0, max_tokens=max_new_tokens, repetition_stop=True)

    def generate_inner(self, message: Sequence[dict[str, Any]], dataset: str | None = None) -> str:
        """Return the answer to one message: its media in their order, then its texts, one a line.

        Consecutive questions about one video share its state. If a file cannot be used, log it and return "". Raise
        UserError for a type of input that the model does not have.
        """
        media, texts = [], []
        for part in message:
            if part["type"] == "text":
                texts.append(part["value"].strip())
            elif part["type"] in ("image", "video"):
                media.append(Medium(local_file(part["value"])))
            else:
                raise UserError(f"the model has no input of type {part['type']!r}. It takes text, image and video")
        self._responder.frames = self._frames()
        prompt = Prompt(tuple(media), "\n".join(text for text in texts if text))
        (reply,) = self._responder.answer([prompt], self._sampling)
        if isinstance(reply, UserError):
            log.error("%s", reply)
            return ""
        return reply.text

    def _frames(self) -> str | int:
        """Return how videos are sampled now. Raise UserError for a rate that the model does not have."""
        if self.fps not in (None, 1):
            raise UserError(f"fps: {self.fps} is unsupported. Use a data set with fps=1, or with nframe")
        return self.nframe if self.nframe and not self.fps else "1fps"
