"""The frames that a model folder's code decodes without this package are those of `ma2mba ask`, and so are refusals."""

import hashlib
import random

import numpy as np
import pytest
from PIL import Image

from ma2mba.errors import UserError
from ma2mba.model.hf.bundle import MODULES, PACKAGE, code_files, imported
from ma2mba.video.frames import FrameReader
from tests import isolated
from tests.unit.video import random_files
from tests.unit.video.numbered_video import write
from tests.unit.video.odd_files import MS, ODD

SIZE = 56
READ = """
import hashlib, json, sys
from pathlib import Path
from bundle.bundled_errors import UserError
from bundle.bundled_video_blocks import read_frames
found = []
for name, count in json.load(sys.stdin):
    try:
        frames = read_frames(Path(name), 56, count=count)
        digest = hashlib.sha256(frames.pictures_MCHW[frames.shown_N].tobytes()).hexdigest()
        found.append([digest, len(frames.shown_N)])
    except UserError as error:
        found.append(str(error))
loaded = {name.split(".")[0] for name in sys.modules}
print(json.dumps([found, sorted(loaded & {"ma2mba", "pydantic", "torch", "transformers", "simplejpeg", "yaml"})]))
"""
"""Reads files with the copied modules alone."""
FILES = 60
COUNTS = (None, 8, 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An environment with av, numpy, Pillow and tokenizers, and the code of a model folder as the package `bundle`."""
    folder = isolated.site(tmp_path_factory.mktemp("isolated") / "site", ["av", "numpy", "Pillow", "tokenizers"])
    (folder / "bundle").mkdir()
    (folder / "bundle" / "__init__.py").touch()
    for name, text in code_files().items():
        (folder / "bundle" / name).write_text(text)
    return folder


def compare(place, paths) -> list:
    """Read each file here and there, and compare. Return what was found here."""
    wanted = [(str(path), count) for path in paths for count in COUNTS]
    there, loaded = isolated.run(place, READ, wanted)
    assert loaded == []
    here: list = []
    with FrameReader() as reader:
        for name, count in wanted:
            try:
                frames = reader.read(name, SIZE, count=count)
                digest = hashlib.sha256(frames.pictures_MCHW[frames.shown_N].tobytes()).hexdigest()
                here.append([digest, len(frames.shown_N)])
            except UserError as error:
                here.append(str(error))
    assert here == there
    return here


def test_odd_files_are_read_or_refused_with_the_same_words(place, tmp_path):
    for odd in ODD:
        odd.make(tmp_path / odd.name)
    found = compare(place, [tmp_path / odd.name for odd in ODD])
    refused = {odd.name for number, odd in enumerate(ODD) if isinstance(found[number * len(COUNTS)], str)}
    assert refused >= {odd.name for odd in ODD if odd.reason} - {"bomb.mov"}
    assert len(refused) < len(ODD) / 2


@pytest.mark.parametrize("part", range(3))
def test_random_files_have_the_same_frames(place, part, tmp_path):
    paths = []
    for number in range(part * FILES // 3, (part + 1) * FILES // 3):
        folder = tmp_path / str(number)
        folder.mkdir()
        paths.append(random_files.make(random.Random(f"hf{number}"), folder)[0])
    found = compare(place, paths)
    assert sum(isinstance(one, list) for one in found) > len(found) / 2


def test_pictures_and_a_long_video_that_is_reached_by_seeking_are_the_same(place, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 121, 3), np.uint8)
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp"):
        Image.fromarray(noise).save(tmp_path / name)
    write(tmp_path / "long.mkv", range(0, 4_000 * 40, 40), MS, options={"g": "25"})
    names = ["a.png", "a.jpg", "a.webp", "a.bmp", "long.mkv"]
    assert all(isinstance(one, list) for one in compare(place, [tmp_path / name for name in names]))


def test_the_list_of_modules_is_what_the_code_imports():
    code = [path.read_text() for path in (PACKAGE / "model/hf/code").glob("*_video_ma2mba.py")]
    reached, todo = set(), [module for text in code for module in imported(text)]
    while todo:
        module = todo.pop()
        if module.startswith("ma2mba.") and module not in reached:
            reached.add(module)
            todo += imported((PACKAGE.parent / (module.replace(".", "/") + ".py")).read_text())
    assert reached == {f"ma2mba.{module}" for module in MODULES}


def test_each_file_names_all_files_that_it_needs():
    """transformers 5.6 does not look into the files that it copies."""
    files = code_files()
    for name, text in files.items():
        named = {module[1:] for module in imported(text) if module.startswith(".")}
        if not name.startswith("bundled_"):
            for module in named:
                needed = {other[1:] for other in imported(files[f"{module}.py"]) if other.startswith(".")}
                assert needed <= named | {stem(name)}, name


def stem(name: str) -> str:
    return name.removesuffix(".py")


def test_no_file_names_this_package_in_an_import():
    for name, text in code_files().items():
        assert not [module for module in imported(text) if module.split(".")[0] == "ma2mba"], name


@pytest.mark.parametrize(
    "line", ["import ma2mba.errors", "from ma2mba import errors", "from ma2mba.files import inside"]
)
def test_an_import_that_a_folder_cannot_have_is_refused(line, tmp_path, monkeypatch):
    from ma2mba.model.hf import bundle

    (tmp_path / "modeling_video_ma2mba.py").write_text(line)
    monkeypatch.setattr(bundle, "CODE", tmp_path)
    with pytest.raises(ValueError, match=r"modeling_video_ma2mba.py: imports "):
        bundle.code_files()
