"""The Python block of docs/inference.md runs as it stands."""

import re
import shutil
from pathlib import Path

from data_prep.toy.generate import plan_series, write_media

PAGE = Path(__file__).resolve().parents[3] / "docs/inference.md"


def test_the_block_runs(model_folder, tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(block.split("\n\n")[1].splitlines()) < 10, "ten lines with the import"
    shutil.copytree(model_folder, tmp_path / "runs/demo/model")
    write_media([(movie, tmp_path) for movie in plan_series("clips", [(4, 4)], 0, lambda i: True)], 1)
    (tmp_path / "clips/00000.mp4").rename(tmp_path / "lecture.mp4")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(PAGE), "exec"), {"__name__": "block"})
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 5
    assert said[-1] == "4.0"
    assert Path("lecture.state").is_file()
