"""The code of a model folder: the files of `code/`, and copies of the modules of ma2mba that they import.

A folder's code must run without this package, and show the model the same frames and tokens. So the modules that decode
videos and encode text are copied, not written twice: `from ma2mba.video.decode import x` becomes
`from .bundled_video_decode import x`, and transformers follows relative imports within the folder.
"""

import ast
import re
from collections.abc import Mapping
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]
CODE = Path(__file__).with_name("code")
MODULES = (
    "errors",
    "limits",
    "memory",
    "strings",
    "model.encoded",
    "model.plain_text",
    "video.animation",
    "video.blocks",
    "video.decode",
    "video.decord_reader",
    "video.entries",
    "video.errors",
    "video.formats",
    "video.jpeg",
    "video.messages",
    "video.pictures",
    "video.probe",
    "video.pyav",
    "video.seek",
    "video.shown",
    "video.stretches",
    "video.structure",
    "video.times",
    "video.view",
)
"""What the files of `code/` import, and what these modules import: below `ma2mba`. None imports a package that the
environment of a model folder lacks, but within `try`."""
_IMPORT = re.compile(r"^(\s*)from ma2mba\.([\w.]+) import ", re.MULTILINE)


def code_files() -> dict[str, str]:
    """Return the name and the text of every Python file of a model folder."""
    own = {path.stem: _standing_alone(path) for path in sorted(CODE.glob("*_video_ma2mba.py"))}
    texts = own | {_name(module): _copied(module) for module in MODULES}
    return {f"{name}.py": text + (_further(name, texts) if name in own else "") for name, text in texts.items()}


def _further(name: str, texts: Mapping[str, str]) -> str:
    """Return lines that name the files which a file needs without importing them itself.

    transformers 5.6 copies from a folder only the files that such lines name; later versions look into those files too.
    """
    direct, reached = _relative(texts[name]), {name}
    todo = set(direct)
    while todo:
        module = todo.pop()
        reached.add(module)
        todo |= _relative(texts[module]) - reached
    lines = "".join(f"    from .{module} import *\n" for module in sorted(reached - direct - {name}))
    return f"\n\nif False:  # transformers copies the files that are named here\n{lines}" if lines else ""


def _relative(text: str) -> set[str]:
    return {module[1:] for module in imported(text) if module.startswith(".")}


def _name(module: str) -> str:
    """Return the name of a module's copy."""
    return "bundled_" + module.replace(".", "_")


def _copied(module: str) -> str:
    path = Path(*module.split(".")).with_suffix(".py")
    return f"# A copy of ma2mba/{path.as_posix()}, made by `ma2mba export`.\n\n{_standing_alone(PACKAGE / path)}"


def _standing_alone(path: Path) -> str:
    """Return a file's text with its imports of ma2mba made relative. Raise ValueError if one cannot be."""
    text = _IMPORT.sub(lambda found: f"{found[1]}from .{_name(found[2])} import ", path.read_text(encoding="utf-8"))
    for module in imported(text):
        if module.split(".")[0] == "ma2mba":
            raise ValueError(f"{path}: imports {module} in another form than `from {module} import NAME`")
        if module.startswith(".bundled_") and module not in {f".{_name(known)}" for known in MODULES}:
            raise ValueError(f"{path}: imports {module}, which is not in MODULES of ma2mba/model/hf/bundle.py")
    return text


def imported(text: str) -> list[str]:
    """Return the modules that a file imports, also within functions; a relative one begins with its dots."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append("." * node.level + (node.module or ""))
    return found
