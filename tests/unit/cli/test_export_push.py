"""`ma2mba export --push`: what is uploaded, when, and what is said when it fails. The hub is a server on loopback."""

import json

import huggingface_hub
import pytest
from huggingface_hub import constants

from ma2mba.model import tensor_writer
from ma2mba.model.pretrained import load_model
from tests.attacks.model_folders import make_model, make_run
from tests.fake_hub import fake_hub
from tests.forked import run as forked

TOKEN = "hf_example"


@pytest.fixture
def hub(monkeypatch):
    with fake_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def nothing(monkeypatch, tmp_path):
    """No token on this machine, and no hub that answers."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert huggingface_hub.get_token() is None


@pytest.fixture
def source(tmp_path):
    make_run(tmp_path / "run")
    return tmp_path / "run"


def export(source, out, *options):
    return forked("export", source, "--out", out, *options)


def test_a_finished_folder_is_uploaded_as_it_is(hub, source, tmp_path):
    out = tmp_path / "out"
    done = export(source, out, "--push", "me/model", "--license", "mit")
    assert done.code == 0, done.err
    assert f"{hub.url}/me/model: uploaded" in done.out
    assert hub.files["me/model"] == {path.name: path.read_bytes() for path in out.iterdir()}
    assert "checksums.json" in hub.files["me/model"]
    assert hub.private == {"me/model": True}
    assert hub.tokens == {f"Bearer {TOKEN}"} | (hub.tokens & {""})
    assert sum("/commit/" in line for line in hub.requests) == 1


def test_a_name_without_an_owner_is_the_user_s(hub, source, tmp_path):
    assert export(source, tmp_path / "out", "--push", "model").code == 0
    assert list(hub.files) == ["me/model"]


def test_another_upload_leaves_no_weights_of_the_first(hub, source, tmp_path, monkeypatch):
    assert export(source, tmp_path / "one", "--push", "me/model").code == 0
    hub.files["me/model"]["notes.txt"] = b"mine"
    monkeypatch.setattr(tensor_writer, "SHARD_BYTES", 50_000)
    assert export(source, tmp_path / "two", "--push", "me/model").code == 0
    files = {path.name for path in (tmp_path / "two").iterdir()}
    assert "model.safetensors" not in files
    assert set(hub.files["me/model"]) == files | {"notes.txt"}


def test_nothing_is_uploaded_without_push(hub, source, tmp_path):
    assert export(source, tmp_path / "out").code == 0
    assert hub.requests == []


def test_a_dry_run_lists_files_and_touches_nothing(nothing, hub, source, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    done = export(source, tmp_path / "out", "--push", "me/model", "--dry-run")
    assert done.code == 0, done.err
    assert hub.requests == []
    assert not (tmp_path / "out").exists()
    assert "uploaded to me/model. Nothing was written" in done.out
    assert export(source, tmp_path / "out").code == 0
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    listed = [line.split() for line in done.out.splitlines()[:-1]]
    assert {name: int(size.replace(",", "")) for size, name in listed} == sizes
    assert f"{sum(sizes.values()):,} bytes in {len(sizes)} files" in done.out


def test_a_missing_token_is_said_before_anything_is_written(nothing, source, tmp_path):
    done = export(source, tmp_path / "out", "--push", "me/model")
    assert done.refused
    assert "--push me/model: no token for the hub. Run `hf auth login`, or set HF_TOKEN" in " ".join(done.err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["", "a/b/c", "../up", "a/..", "/abs", "a b", "a--b/c", "x" * 300, "a/\x1b[2J", "https://x"]
)
def test_a_name_that_is_none_is_refused(nothing, source, tmp_path, name):
    done = export(source, tmp_path / "out", "--push", name)
    assert done.refused
    assert "not the name of a repository on the hub" in " ".join(done.err.split())
    assert not (tmp_path / "out").exists()


def test_what_the_hub_refuses_leaves_a_complete_folder(hub, source, tmp_path):
    hub.refuse_commits = True
    out = tmp_path / "out"
    done = export(source, out, "--push", "me/model")
    assert done.refused
    said = " ".join(done.err.split())
    assert "--push me/model: the hub refused it, or cannot be reached" in said
    assert f"hf upload me/model {out}" in said
    load_model(out)


def test_a_hub_that_cannot_be_reached(nothing, source, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    done = export(source, tmp_path / "out", "--push", "me/model")
    assert done.refused
    assert "cannot be reached" in " ".join(done.err.split())
    load_model(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--license", "MIT License"), "--license MIT License: not an identifier"),
        (("--license", "mit\nx: y"), "not an identifier"),
        (("--format", "state-spaces", "--push", "me/model"), "--format state-spaces: takes no --license, --push or"),
    ],
)
def test_options_that_are_wrong(source, tmp_path, options, said):
    done = export(source, tmp_path / "out", *options)
    assert done.refused
    assert said in " ".join(done.err.split())


def test_a_model_folder_is_pushed_too(hub, tmp_path):
    model = make_model(tmp_path / "model")
    assert export(model, tmp_path / "out", "--push", "team/model").code == 0
    assert json.loads(hub.files["team/model"]["config.json"])["model_type"] == "video_ma2mba"
