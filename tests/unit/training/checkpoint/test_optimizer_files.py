"""Fragments on any number of ranks are read from the files of any other number of ranks."""

import pytest
import torch

from ma2mba.errors import UserError
from ma2mba.training.checkpoint import optimizer_files
from ma2mba.training.checkpoint.optimizer_files import read_fragments, write_fragments
from ma2mba.training.checkpoint.zero_state import Fragment

KEYS = ("weight", "exp_avg", "exp_avg_sq")
WHOLE = {name: {key: torch.randn(n) for key in KEYS} for name, n in (("a", 7), ("b", 1), ("c", 12))}


def cut(ranks):
    """Yield each rank's fragments: every parameter is cut into equal shards, the last shorter or absent."""
    for rank in range(ranks):
        pieces = []
        for name, tensors in WHOLE.items():
            size = -(-len(tensors["weight"]) // ranks)
            shards = {key: t[rank * size : (rank + 1) * size].clone() for key, t in tensors.items()}
            if len(shards["weight"]):
                pieces.append(Fragment(name, rank * size, shards))
        yield pieces


@pytest.mark.parametrize("file_bytes", [1, 1 << 30])
@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 3), (4, 4)])
def test_another_number_of_ranks(tmp_path, monkeypatch, before, after, file_bytes):
    monkeypatch.setattr(optimizer_files, "FILE_BYTES", file_bytes)
    for rank, pieces in enumerate(cut(before)):
        files = write_fragments(pieces, 41, rank, tmp_path)
        assert len(files) == (len(pieces) if file_bytes == 1 else 1)
    for pieces in cut(after):
        expected = [{key: t.clone() for key, t in piece.tensors.items()} for piece in pieces]
        for piece in pieces:
            for tensor in piece.tensors.values():
                tensor.fill_(float("nan"))
        assert read_fragments(pieces, tmp_path) == 41
        for piece, tensors in zip(pieces, expected, strict=True):
            assert all(torch.equal(piece.tensors[key], tensors[key]) for key in KEYS)


def test_missing_elements_are_refused(tmp_path):
    ranks = list(cut(2))
    write_fragments(ranks[0], 1, 0, tmp_path)
    with pytest.raises(UserError, match=r"holds 4 of the 7 elements of weight of a that this rank needs"):
        read_fragments(next(cut(1)), tmp_path)
