"""The device that a command line asks for."""

from ma2mba.errors import UserError


def device_name(name: str) -> str:
    """`auto`, `cpu` or `cuda` -> cpu or cuda. Raises UserError for another name, and where there is no GPU."""
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {name}: give auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here; give --device cpu")
    return "cuda" if torch.cuda.is_available() and name != "cpu" else "cpu"
