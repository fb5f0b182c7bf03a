"""What the files of a run say about the model of one of its checkpoints."""

from pathlib import Path
from typing import Any

from ma2mba.files import inside
from ma2mba.model.hf.card import CardFacts, base_models, hub_names
from ma2mba.text import read_jsonl
from ma2mba.training.checkpoint.folder import MODEL, read


def facts_of_checkpoint(run: Path, checkpoint: Path) -> CardFacts:
    """Return the facts for the model card. Raise UserError if a file of the run is damaged."""
    state = read(checkpoint).state
    last: dict[str, Any] = {}
    for record in read_jsonl(inside(run, "metrics.jsonl", run)):
        if isinstance(step := record.get("step"), int) and step <= state.step:
            last = record
    bases = base_models(checkpoint / MODEL) or hub_names(state.recipe.get("init_from"))
    return CardFacts(state.recipe, state.step, last, bases)
