"""`ma2mba import`: turn published weights into safetensors that training and `export` read."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ma2mba.cli.output import print_line
from ma2mba.errors import UserError
from ma2mba.files import refuse_link, writing

app = typer.Typer(no_args_is_help=True, help="Import published weights, pickled checkpoints included.")
Source = Annotated[str, typer.Argument(help="Folder, or NAME or NAME@REVISION on the Hugging Face hub.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write, for `init_from` of a recipe.")]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a hub name (default: the main branch).")
]


@app.command("state-spaces")
def state_spaces(source: Source, out_dir: Out, revision: Revision = None) -> None:
    """Import a Mamba-2 language model of state-spaces, such as state-spaces/mamba2-2.7b."""
    _import_backbone(source, out_dir, revision, "state-spaces")


@app.command("transformers")
def transformers(source: Source, out_dir: Out, revision: Revision = None) -> None:
    """Import a Mamba-2 language model that transformers saved (Mamba2ForCausalLM)."""
    _import_backbone(source, out_dir, revision, "transformers-mamba2")


@app.command("clip")
def clip(source: Source, out_dir: Out, revision: Revision = None) -> None:
    """Import the vision tower of a CLIP model, such as openai/clip-vit-large-patch14-336."""
    from ma2mba.model.clip import download_clip, import_clip

    folder, origin = _find(source, out_dir, revision, download_clip)
    with writing(out_dir):
        opened = import_clip(folder, out_dir, origin)
    config = opened.config
    print_line(f"{out_dir}: {config.num_hidden_layers} layers, width {config.width}, {config.image_size} pixels")


def _import_backbone(source: str, out_dir: Path, revision: str | None, format_name: str) -> None:
    from ma2mba.model.backbone_files import FORMATS, import_backbone
    from ma2mba.model.downloads import download_weights

    folder, origin = _find(source, out_dir, revision, download_weights)
    with writing(out_dir):
        config = import_backbone(folder, FORMATS[format_name], out_dir, origin).config
    print_line(f"{out_dir}: {config.n_layer} layers, width {config.d_model}, vocabulary {config.vocab_size:,}")


def _find(
    source: str, out_dir: Path, revision: str | None, download: Callable[[Any], object]
) -> tuple[Path, dict[str, str]]:
    """Return the folder of a source, and where it comes from. Raise UserError if --out or the source is wrong."""
    from ma2mba.hub import HubName, fetch, hub_name

    refuse_link(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(f"{out_dir}: exists and is not empty. Choose another --out or remove it")
    name = hub_name(source)
    if revision is not None:
        if name is None or name.revision:
            what = "has a revision already" if name else "is a path, which has no revision"
            raise UserError(f"--revision {revision}: {source} {what}. Remove --revision")
        name = hub_name(str(HubName(name.name, revision)))
        if name is None:
            raise UserError(f"--revision {revision}: not a revision. Give a branch, a tag or a commit")
    if name is None and not Path(source).is_dir():
        raise UserError(f"{source}: does not exist. Give a folder, or a name on the Hugging Face hub as OWNER/NAME")
    if name is None:
        return Path(source), {"source": source}
    folder = fetch(str(name), download)
    return folder, {"source": name.name, "revision": name.revision or "main", "commit": folder.name}
