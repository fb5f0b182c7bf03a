"""The name of a training stage: a label in recipes and reports."""

import re
from typing import Annotated

from pydantic import AfterValidator


def _stage_name(text: str) -> str:
    if not re.fullmatch("[A-Za-z0-9_]+", text):
        raise ValueError(f"{text!r} is not a stage name; use letters, digits and _, as in stage1_5")
    return text


Stage = Annotated[str, AfterValidator(_stage_name)]
"""The paper's stages are stage1, stage1_5 and stage2. No behaviour depends on the name."""
