"""Small model folders and runs, and functions that forge them: changed files get the checksums that they need."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from ma2mba.data.sampler import Position
from ma2mba.errors import UserError
from ma2mba.files import xxh3_file
from ma2mba.model.config import ModelConfig
from ma2mba.model.pretrained import save_model
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.training.checkpoint import folder as checkpoint
from ma2mba.training.checkpoint.code_version import code_version
from ma2mba.training.checkpoint.optimizer_files import write_fragments
from ma2mba.training.checkpoint.rng import RandomState
from ma2mba.training.checkpoint.zero_state import Fragment
from ma2mba.training.recipe.loading import parse_recipe
from tests.forked import Outcome, call
from tests.tiny import TINY_MODEL

CPU = torch.device("cpu")


def make_model(folder: Path, values: dict[str, Any] = TINY_MODEL) -> Path:
    torch.manual_seed(0)
    words = {"<|endoftext|>": 0, "a": 1}
    tokenizer = folder.with_name(f"{folder.name}-tokenizer.json")
    folder.parent.mkdir(parents=True, exist_ok=True)
    Tokenizer(models.WordLevel(words, unk_token="a")).save(str(tokenizer))
    save_model(VideoMa2mba(ModelConfig.model_validate(values)), tokenizer, folder)
    tokenizer.unlink()
    return folder


def make_old_model(folder: Path) -> Path:
    """Write the model of `make_model` in format 1, as versions before format 2 wrote it."""
    new = make_model(folder.with_name(f"{folder.name}-new"))
    folder.mkdir()
    config = ModelConfig.model_validate(TINY_MODEL).model_dump_json(indent=2)
    (folder / "config.json").write_text(config + "\n")
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.copy(new / name, folder)
    shutil.rmtree(new)
    sign_model(folder)
    return folder


def make_recipe(run: Path, **changes: Any) -> Any:
    values = {"stage": "stage1", "data": "d", "init_from": "m", "trainable": {"projector": 1.0}, "global_batch": 4}
    return parse_recipe(values | {"run": str(run), "steps": 9} | changes)


def make_run(run: Path, steps: tuple[int, ...] = (3,)) -> Path:
    """Write a run with complete checkpoints, and return the folder of the last one."""
    for step in steps:
        temporary = checkpoint.temporary_folder(run, step)
        make_model(temporary / "model")
        pieces = [Fragment("a", 0, {key: torch.ones(4) for key in ("weight", "exp_avg", "exp_avg_sq")})]
        files = write_fragments(pieces, step, 0, temporary / "optimizer")
        checkpoint.write_rank(temporary, 0, checkpoint.RankState(random=RandomState.capture(CPU), files=files))
        facts = {"ranks": 1, "zero_stage": 1, "dtype": "torch.float32", "data_fingerprint": "f"}
        facts |= {"recipe": make_recipe(run).model_dump(mode="json"), "code": code_version()}
        folder = checkpoint.publish(run, step, Position(0, step), facts)
    (run / "recipe.yaml").write_text("stage: stage1\ncheckpoint: {every: 3}\n")
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "loss": 1.5}) + "\n" for s in steps))
    return folder


def sign_model(folder: Path) -> None:
    """Write the checksums of a model folder's files."""
    names = (path.name for path in sorted(folder.iterdir()) if path.is_file() and path.name != "checksums.json")
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "checksums.json").write_text(json.dumps(sums))


def sign_checkpoint(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda state: None) -> None:
    """Write trainer.json with the sizes and hashes of the present files, then `change` it, and write its hash."""
    state = json.loads((folder / "trainer.json").read_text())
    for entry in state["files"]:
        path = folder / entry["name"]
        entry |= {"bytes": path.stat().st_size, "xxh3": xxh3_file(path)}
    state = change(state) or state
    sign_state(folder, json.dumps(state).encode())


def sign_state(folder: Path, content: bytes) -> None:
    (folder / "trainer.json").write_bytes(content)
    (folder / "trainer.json.xxh3").write_text(xxhash.xxh3_128(content).hexdigest() + "\n")


def change_config(folder: Path, key: str, value: Any) -> None:
    """Set a key such as "vision_config.image_size" of a model's config.json, and sign the folder."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    *sections, last = key.split(".")
    inner = config
    for section in sections:
        inner = inner[section]
    inner[last] = value
    path.write_text(json.dumps(config))
    sign_model(folder)


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    sign_model(folder)


def attempt(work: Callable[[], object]) -> Outcome:
    """Call a function in a forked child, which turns UserError into one line and exit code 2, as a command does."""

    def refusing() -> None:
        try:
            work()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None

    return call(refusing)


def require_refused(outcome: Outcome, *named: str) -> None:
    """Fail unless a command was refused in one line that names these words, quickly and within 1 GB."""
    assert outcome.refused, (outcome.code, outcome.out[-300:], outcome.err[-1500:])
    assert outcome.peak_mb < 1000, outcome.peak_mb
    assert outcome.seconds < 60
    line = " ".join(outcome.err.split())
    assert all(word in line for word in named), (named, line)
