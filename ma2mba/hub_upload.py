"""Upload a finished folder to the Hugging Face hub. Nothing else in this package sends data anywhere."""

import re
from collections.abc import Collection
from pathlib import Path

from ma2mba.errors import UserError
from ma2mba.text import shorten

_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
REPLACED = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]
"""Files of an earlier upload that are removed when the new one has no such file: a model has one set of weights."""


def require_target(name: str, *, token: bool) -> None:
    """Raise UserError unless `name` can name a repository and, with `token`, a token is there. Uses no network."""
    if not _NAME.fullmatch(name) or ".." in name or "--" in name or name.endswith((".git", ".", "-")):
        raise UserError(f"--push {shorten(name)!r}: not the name of a repository on the hub. Give OWNER/NAME")
    if token:
        from huggingface_hub import get_token

        if not get_token():
            raise UserError(f"--push {name}: no token for the hub. Run `hf auth login`, or set HF_TOKEN, and try again")


def upload(folder: Path, names: Collection[str], name: str) -> str:
    """Upload these files of a folder in one commit, and return the address of the repository.

    A new repository is private; an existing one stays as it is. Raise UserError that says what the hub answered.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        repository = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=folder,
            allow_patterns=sorted(names),
            delete_patterns=REPLACED,
            commit_message="Upload a model exported by ma2mba",
        )
    except Exception as error:  # the hub's client raises errors of many libraries
        reason = shorten(" ".join(str(error).split()) or type(error).__name__, 300)
        raise UserError(
            f"--push {name}: the hub refused it, or cannot be reached ({reason}). {folder} is complete: try again with "
            f"`hf upload {name} {folder}`"
        ) from error
    return str(repository)
