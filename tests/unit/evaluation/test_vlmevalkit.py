"""The file for VLMEvalKit, against a stand-in for VLMEvalKit's interface: PyPI does not have VLMEvalKit.

The stand-in does what `BaseModel.generate` and the loop of `infer_data` (vlmeval/inference_video.py) do with a model.
"""

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ma2mba import VideoChat
from ma2mba.errors import UserError
from ma2mba.video.synthetic.movie import plan_movie, write_movie

FILE = Path(__file__).resolve().parents[3] / "examples/vlmevalkit/ma2mba.py"


class BaseModel:
    allowed_types = ("text", "image", "video")

    def generate(self, message, dataset=None):
        assert all(item["type"] in self.allowed_types for item in message)
        return self.generate_inner(message, dataset)


def set_sampling(model, dataset) -> None:
    """Give the model the sampling of the data set, as `infer_data` does before each question."""
    for name, other in (("nframe", "fps"), ("fps", "nframe")):
        if (getattr(model, name, None) or 0) > 0:
            if getattr(dataset, name) > 0:
                setattr(model, name, getattr(dataset, name))
            elif getattr(model, other, 0) == 0:
                raise ValueError(f"{name} is not suitable")
            else:
                setattr(model, name, None)


@pytest.fixture
def kit_model(model_folder, monkeypatch):
    base = ModuleType("vlmeval.vlm.base")
    base.BaseModel = BaseModel
    for name, module in (("vlmeval", ModuleType("vlmeval")), ("vlmeval.vlm", ModuleType("vlm")), (base.__name__, base)):
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("vlmeval.vlm.ma2mba", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Ma2mba(model_path=model_folder, device="cpu", max_new_tokens=8)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    write_movie(plan_movie("a", 6, "red star", 1, random.Random(0)), path)
    return path


def asked(model_folder, path, question, frames="1fps"):
    chat = VideoChat.open(model_folder, "cpu")
    if path:
        chat.watch(path, frames, hashed=False)
    return chat.ask(question, max_tokens=8, repetition_stop=True).text


def message(path, *texts):
    parts = [{"type": "text", "value": text} for text in texts]
    return [parts[0], {"type": "video", "value": str(path)}, *parts[1:]]


@pytest.mark.parametrize(
    ("nframe", "fps", "frames"), [(4, -1, 4), (0, 1, "1fps"), (0, -1, "1fps")], ids=["nframe", "fps", "neither"]
)
def test_the_data_set_says_how_videos_are_sampled(kit_model, model_folder, video, nframe, fps, frames, monkeypatch):
    watched = []
    watch = VideoChat.watch
    monkeypatch.setattr(VideoChat, "watch", lambda *a, **k: watched.append(a[2]) or watch(*a, **k))
    for _ in range(2):
        set_sampling(kit_model, SimpleNamespace(nframe=nframe, fps=fps))
        answer = kit_model.generate(message(video, "", "Which symbol", "appeared?"), "Video-MME")
    assert watched == [frames]  # once for both questions
    assert answer == asked(model_folder, video, "Which symbol\nappeared?", frames)


def test_another_rate_is_refused(kit_model, video):
    set_sampling(kit_model, SimpleNamespace(nframe=0, fps=2))
    with pytest.raises(UserError, match="fps: 2 is unsupported"):
        kit_model.generate(message(video, "", "Which symbol appeared?"))


def test_pictures_texts_and_damaged_videos(kit_model, model_folder, tmp_path, caplog):
    picture, damaged = tmp_path / "a.png", tmp_path / "a.mp4"
    Image.fromarray(np.zeros((56, 56, 3), np.uint8)).save(picture)
    damaged.write_bytes(b"no video")
    with_picture = [{"type": "image", "value": str(picture)}, {"type": "text", "value": "Describe the picture."}]
    assert kit_model.generate(with_picture) == asked(model_folder, picture, "Describe the picture.")
    assert kit_model.generate(with_picture[1:]) == asked(model_folder, None, "Describe the picture.")
    assert kit_model.generate(message(damaged, "", "Which symbol appeared?")) == ""
    assert "a.mp4" in caplog.text
    assert kit_model.VIDEO_LLM
