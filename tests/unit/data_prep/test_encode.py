"""Features of a frozen encoder equal what the model itself computes, in a folder that training accepts."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_build_shards import contents

from data_prep import features
from data_prep.audit import audit
from data_prep.encode import encode, reencode
from data_prep.features import plan_batches, rows_by_shard
from ma2mba.data.dataset import Dataset
from ma2mba.errors import UserError
from ma2mba.model.pretrained import load_model
from ma2mba.model.vision import fingerprint
from ma2mba.shards.manifest import hash_json, read_manifest, write_manifest
from ma2mba.shards.reader import ShardReader, find_damage
from tests.unit.data.toy_shards import join_shards, write_shards

SIZES = [[(3, 4), (0, 5), (37, 2)], [(0, 3), (0, 2)], [(16, 1), (1, 1)], [(33, 2)]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Four shards, one of text alone."""
    folder = tmp_path_factory.mktemp("pictures")
    parts = [
        write_shards(folder / str(i), sizes, image_size=56, seed=i, prefix=f"{i}-") for i, sizes in enumerate(SIZES)
    ]
    return join_shards(folder / "s", parts)


@pytest.fixture(scope="module")
def encoded(pictures, model_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "s"
    encode(pictures, str(model_folder), out, batch=8, threads=2)
    return out


def test_features_are_the_encoders(pictures, encoded, model_folder):
    model = load_model(model_folder)[0].to(torch.bfloat16)
    seen, made = Dataset([pictures], 56, 4), Dataset([encoded], 56, 4)
    assert made.features.encoder == fingerprint(model.vision)
    assert find_damage(encoded) == []
    worst = 0.0
    with torch.no_grad():
        for i in range(len(seen)):
            ours, theirs = made[i], seen[i]
            assert ours.sample_id == theirs.sample_id
            assert np.array_equal(ours.token_ids_T, theirs.token_ids_T)
            assert len(ours.frames) == len(theirs.frames)
            if len(theirs.frames):
                plain = model.vision(theirs.frames[0:99])
                assert plain.dtype == ours.frames[0:99].dtype == torch.bfloat16
                worst = max(worst, (plain - ours.frames[0:99]).abs().max().item())
    assert worst < 0.02  # measured 0.0; on a GPU the batch may change the rounding to bf16


def test_row_groups_hold_16_frames_and_any_range_reads(encoded):
    reader = ShardReader(encoded)
    row = next(row for row in reader.rows if row.frames == 37)
    whole = reader.frames(row)
    assert {len(frame) for frame in whole} == {reader.manifest.features.frame_bytes} == {4 * 16 * 2}
    for start, stop in ((0, 1), (15, 17), (16, 32), (36, 37)):
        assert reader.frames(row, start, stop) == whole[start:stop]
    assert reader.shown_since(row, 15, 20).tolist() == [15.0, 16.0, 17.0, 18.0, 19.0]


def test_batches_are_full_across_videos(pictures):
    batches = list(plan_batches(rows_by_shard(ShardReader(pictures).rows), 8))
    sizes = [sum(piece.stop - piece.start for piece in pieces) for pieces in batches]
    assert sizes == [8] * 11 + [2]  # 90 frames
    assert max(len({piece.row.sample_id for piece in pieces}) for pieces in batches) > 1


def test_stopped_anywhere_and_started_again_the_bytes_are_the_same(
    pictures, encoded, model_folder, tmp_path, monkeypatch
):
    real = features._Writer.take
    for stop_after in range(0, 12, 2):
        calls = []

        def failing(self, pieces, values, calls=calls, stop_after=stop_after):
            calls.append(1)
            if len(calls) > stop_after:
                raise OSError("no space left")
            real(self, pieces, values)

        with monkeypatch.context() as patch:
            patch.setattr(features._Writer, "take", failing)
            with pytest.raises(OSError, match="no space"):
                encode(pictures, str(model_folder), tmp_path / str(stop_after), batch=8, threads=2)
        assert not (tmp_path / str(stop_after) / "manifest.json").exists()
        encode(pictures, str(model_folder), tmp_path / str(stop_after), batch=8, threads=1)
        assert contents(tmp_path / str(stop_after)) == contents(encoded)
    assert encode(pictures, str(model_folder), encoded, batch=8)["already_built"]


def test_what_cannot_be_encoded_is_refused(pictures, encoded, model_folder, tmp_path):
    with pytest.raises(UserError, match="holds features already"):
        encode(encoded, str(model_folder), tmp_path / "x")
    small = write_shards(tmp_path / "small", [(1, 1)], image_size=28)
    with pytest.raises(UserError, match=r"needs frames of 56 pixels, but the frames of .* have 28"):
        encode(small, str(model_folder), tmp_path / "x")
    with pytest.raises(UserError, match="was built by another recipe"):
        encode(pictures, str(model_folder), encoded, batch=4)
    assert not (tmp_path / "x").exists()


def test_rebuilt_pictures_with_other_bytes_are_refused(model_folder, tmp_path):
    """The recipe is the same, and so is the encoder."""
    out = tmp_path / "features"
    for seed in (0, 1):
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        write_shards(tmp_path / "s", [(1, 2)], image_size=56, seed=seed)
        if seed:
            with pytest.raises(UserError, match="shards: "):
                encode(tmp_path / "s", str(model_folder), out, batch=8)
            manifest = read_manifest(out)
            with pytest.raises(UserError, match="the pictures have changed"):
                reencode(tmp_path / "s", str(model_folder), tmp_path / "again", manifest, None, 1)
        else:
            encode(tmp_path / "s", str(model_folder), out, batch=8)


def test_features_of_earlier_versions_are_read_and_repaired(pictures, encoded, model_folder, tmp_path):
    """They do not record the checksum of their pictures."""
    old = Path(shutil.copytree(encoded, tmp_path / "old"))
    manifest = read_manifest(old)
    recipe = {key: value for key, value in manifest.recipe.items() if key != "shards"}
    write_manifest(old, manifest.model_copy(update={"recipe": recipe, "recipe_hash": hash_json(recipe)}))
    assert len(Dataset([old], 56, 4)[0].frames) == 3
    (old / "payload/part-00003.parquet").unlink()
    assert audit(old, repair=True).sound
