"""Our formats: which files belong to each, which commands read them, and how their checksums are made again."""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ma2mba.files import sha256_file, xxh3_file
from ma2mba.inference.state_file import CHECKSUM
from ma2mba.shards.manifest import hash_json
from tests.unit.inference.states import seal


@dataclass(frozen=True)
class Command:
    """A command line; {file} is the mutated file, {case} its folder, {out} a new path.

    share  in which share of the rounds it runs
    codes  exit codes that are allowed besides 0 and 2
    alone  it cannot run twice in a process
    tree   the files that it writes to {out}, or changes in the case, are its meaning; otherwise its JSON is
    """

    line: str
    share: float = 1.0
    codes: tuple[int, ...] = ()
    alone: bool = False
    tree: str = ""


@dataclass(frozen=True)
class Format:
    """A format. `copied`: what the case's folder holds. `files`: patterns of the files that are mutated.

    sealed  patterns of files that checksums cover: without new checksums, a command that succeeds means the same
    remake  makes the checksums of the case's folder again
    """

    copied: tuple[str, ...]
    files: tuple[str, ...]
    commands: tuple[Command, ...]
    sealed: tuple[str, ...] = ()
    remake: Callable[[Path], None] | None = None

    def is_sealed(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.sealed)


def _json(path: Path) -> Any:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return json.loads(path.read_bytes()) if path.is_file() and path.stat().st_size < 10**8 else None
    return None


def _sha256(path: Path) -> str:
    return sha256_file(path) if path.is_file() else ""


def _seal_entries(folder: Path, entries: Any) -> None:
    """Make sizes and hashes of a list of FileEntry again, as far as it is one."""
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("name"), str) and "\0" not in entry["name"]:
            with contextlib.suppress(OSError, ValueError):
                path = folder / entry["name"]
                if path.is_file():
                    entry |= {"bytes": path.stat().st_size, "xxh3": xxh3_file(path)}


def _write(path: Path, value: Any) -> None:
    with contextlib.suppress(OSError, RecursionError):
        if path.is_file() and not path.is_symlink():
            path.write_text(json.dumps(value), encoding="utf-8")


def seal_shards(folder: Path) -> None:
    """Make the checksums of a shard folder again."""
    manifest = _json(folder / "manifest.json")
    if isinstance(manifest, dict):
        _seal_entries(folder, manifest.get("files"))
        manifest["tokenizer_sha256"] = _sha256(folder / "tokenizer.json")
        manifest.pop("checksum", None)
        with contextlib.suppress(RecursionError):
            _write(folder / "manifest.json", manifest | {"checksum": hash_json(manifest)})


def seal_model(folder: Path) -> None:
    """Make the checksums of a model folder again."""
    sums = _json(folder / "checksums.json")
    if isinstance(sums, dict):
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            sums[name] = _sha256(folder / name)
        _write(folder / "checksums.json", sums)


def seal_run(folder: Path) -> None:
    """Make the checksums of all checkpoints of a run again."""
    for checkpoint in sorted(folder.glob("checkpoints/step-*")):
        if not checkpoint.is_dir():
            continue
        seal_model(checkpoint / "model")
        for rank in sorted(checkpoint.glob("ranks/*.json")):
            state = _json(rank)
            if isinstance(state, dict):
                _seal_entries(checkpoint / "optimizer", state.get("files"))
                _write(rank, state)
        state = _json(checkpoint / "trainer.json")
        if isinstance(state, dict):
            _seal_entries(checkpoint, state.get("files"))
            _write(checkpoint / "trainer.json", state)
        sums = checkpoint / "trainer.json.xxh3"
        if (checkpoint / "trainer.json").is_file() and sums.is_file() and not sums.is_symlink():
            digest = xxh3_file(checkpoint / "trainer.json")
            sums.write_text(digest + "\n")


def seal_state(folder: Path) -> None:
    """Make the checksum of a state file again, if it has one."""
    path = folder / "a.state"
    with contextlib.suppress(OSError):
        content = path.read_bytes() if path.is_file() and path.stat().st_size < 10**8 else b""
        if CHECKSUM.search(content) and not path.is_symlink():
            path.write_bytes(seal(bytearray(content)))


SHARDS = (
    Command("inspect {case}/shards --json"),
    Command("data audit {case}/shards --json --workers 1", codes=(1,)),
    Command("data audit {case}/shards --repair --json --workers 1", 0.15, codes=(1,), tree="shards"),
    Command("train {base}/train.yaml run={out} data={case}/shards --dry-run", 0.25),
    Command("train {base}/train.yaml run={out} data={case}/shards", 0.03, alone=True),
    Command("data encode {case}/shards --encoder {base}/model --out {out} --workers 1 --json", 0.08),
)
FEATURES = (
    Command("inspect {case}/features --json"),
    Command("data audit {case}/features --json --workers 1", codes=(1,)),
    Command("data audit {case}/features --repair --json --workers 1", 0.1, codes=(1,), tree="features"),
    Command("train {base}/train.yaml run={out} data={case}/features --dry-run", 0.25),
    Command("train {base}/train.yaml run={out} data={case}/features", 0.03, alone=True),
)
MODEL = (
    Command("inspect {case}/model --json"),
    Command("ask {base}/media/p.png w1 --model {case}/model --json --max-tokens 2", 0.5),
    Command("eval --model {case}/model --task {base}/tasks.jsonl --json", 0.2),
    Command("train {base}/train.yaml run={out} init_from={case}/model --dry-run", 0.3),
    Command("train {base}/train.yaml run={out} init_from={case}/model", 0.02, alone=True),
    Command("plan --model {base}/train.yaml --device-memory 1 --tokens 500 --json init_from={case}/model", 0.1),
    Command("data encode {base}/shards --encoder {case}/model --out {out} --workers 1 --json", 0.1),
)
STATE = (
    Command("ask --state {case}/state/a.state w1 --model {base}/model --json --max-tokens 2"),
    Command("ingest {base}/media/p.png --from {case}/state/a.state --out {out}/b.state --model {base}/model", 0.3),
)
RUN = (
    Command("inspect {case}/run --json"),
    Command("export {case}/run --out {out}", 0.4, tree="out"),
    Command("export {case}/run --out {out} --step 1", 0.2, tree="out"),
    Command("train {base}/train.yaml run={case}/run --dry-run", 0.25),
    Command("train {base}/train.yaml run={case}/run steps=3", 0.03, alone=True),
    Command("train {base}/train.yaml run={out} init_from={case}/run --dry-run", 0.2),
    Command("train {base}/train.yaml run={out} resume={case}/run/checkpoints/step-000001 --dry-run", 0.1),
)
SHARD_FILES = ("manifest.json", "index.parquet", "payload/*.parquet", "tokenizer.json", "rejects.jsonl", "report.json")
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "checksums.json")
STATE_FILES = ("trainer.json", "trainer.json.xxh3", "ranks/*.json", "optimizer/*.safetensors", "model/*")


def _in(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names)


def _shards(*names: str, folder: str = "shards") -> Format:
    commands = SHARDS if folder == "shards" else FEATURES
    sealed = _in(folder, *SHARD_FILES)
    return Format((folder,), _in(folder, *names), commands, sealed, lambda case: seal_shards(case / folder))


def _model(*names: str) -> Format:
    return Format(
        ("model",), _in("model", *names), MODEL, _in("model", *MODEL_FILES), lambda c: seal_model(c / "model")
    )


def _run(*names: str) -> Format:
    sealed = _in("run/checkpoints/step-*", *STATE_FILES)
    return Format(("run",), _in("run", *names), RUN, sealed, lambda case: seal_run(case / "run"))


def _annotations(form: str, files: Mapping[str, Any]) -> Format:
    preview = f"data build {{case}}/recipes/{form}.yaml --out {{out}} --dry-run --json"
    build = f"data build {{case}}/recipes/{form}.yaml --out {{out}} --json --workers 1"
    copied = (f"recipes/{form}.yaml", "annotations", "media", "tokenizer.json")
    return Format(copied, _in("annotations", *files), (Command(preview), Command(build, 0.03)))


def formats(annotations: Mapping[str, Mapping[str, Any]]) -> dict[str, Format]:
    """Return every format by its name. `annotations`: the files of each annotation format."""
    data = ("recipes/llava.yaml", "annotations", "media", "tokenizer.json")
    build = "data build {case}/recipes/llava.yaml --out {out} --json --workers 1"
    found = {
        "manifest": _shards("manifest.json"),
        "index": _shards("index.parquet"),
        "payload": _shards("payload/*.parquet"),
        "shard-notes": _shards("tokenizer.json", "rejects.jsonl", "report.json", "origin.json"),
        "features": _shards(*SHARD_FILES, "origin.json", folder="features"),
        "build-notes": Format(
            (*data, "unfinished"),
            ("unfinished/.build/*", "unfinished/payload/*"),
            (
                Command("data build {case}/recipes/llava.yaml --out {case}/unfinished --dry-run --json"),
                Command("data build {case}/recipes/llava.yaml --out {case}/unfinished --json --workers 1", 0.3),
                Command("data build {case}/recipes/llava.yaml --out {case}/unfinished --merge --json", 0.3),
            ),
        ),
        "state": Format(("state",), ("state/*",), STATE, ("state/*",), lambda case: seal_state(case / "state")),
        "model": _model("config.json", "checksums.json", "model.safetensors"),
        "tokenizer": _model("tokenizer.json"),
        "checkpoint": _run(*(f"checkpoints/step-*/{name}" for name in STATE_FILES)),
        "run-notes": _run("checkpoints/latest", "metrics.jsonl", "recipe.yaml"),
        "replay": Format(
            ("replay",), ("replay/*",), (Command("replay {case}/replay/step-000002.json --json", codes=(1,)),)
        ),
        "recipe": Format(
            ("train.yaml", "policy.json", "shards", "model"),
            ("train.yaml",),
            (
                Command("train {case}/train.yaml run={out} --dry-run"),
                Command("train {case}/train.yaml --dry-run", 0.3),
                Command("plan --model {case}/train.yaml --device-memory 1 --tokens 500 --json", 0.3),
                Command("train {case}/train.yaml run={out} steps=1", 0.03, codes=(1,), alone=True),
            ),
        ),
        "policy": Format(
            ("train.yaml", "policy.json", "shards", "model"),
            ("policy.json",),
            (
                Command("train {case}/train.yaml run={out} --dry-run"),
                Command("plan --model {case}/train.yaml --device-memory 1 --tokens 500 --json", 0.2),
                Command("train {case}/train.yaml run={out} steps=1", 0.05, codes=(1,), alone=True),
            ),
        ),
        "hostfile": Format(
            ("hosts",), ("hosts",), (Command("train {base}/train.yaml run={out} --hostfile {case}/hosts --dry-run"),)
        ),
        "tasks": Format(
            ("tasks.jsonl", "media"),
            ("tasks.jsonl",),
            (Command("eval --model {base}/model --task {case}/tasks.jsonl --json"),),
        ),
        "data-recipe": Format(data, ("recipes/llava.yaml",), (Command(build + " --dry-run"), Command(build, 0.03))),
        "pictures": Format(
            data,
            ("media/p.png", "media/p.jpg"),
            (
                Command("ask {file} w1 --model {base}/model --json --max-tokens 1"),
                Command(build, 0.1),
            ),
        ),
        "videos": Format(
            data,
            ("media/v.mp4", "media/w.mkv"),
            (
                Command("ask {file} w1 --model {base}/model --json --max-tokens 1"),
                Command(build, 0.1),
            ),
        ),
    }
    return found | {f"annotations-{form}": _annotations(form, files) for form, files in annotations.items()}
