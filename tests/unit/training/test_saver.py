"""Checkpoints are written while training goes on: they hold the state of their step, or do not exist."""

import errno
import os
import threading

import pytest
import torch
from safetensors.torch import load_file, save
from torch.distributed import HashStore

from ma2mba.data.sampler import Position
from ma2mba.errors import UserError
from ma2mba.model.hf.card import CardFacts
from ma2mba.model.pretrained import load_model
from ma2mba.model.weights import stored_tensors
from ma2mba.training.checkpoint import folder as checkpoint
from ma2mba.training.checkpoint import save as saving
from ma2mba.training.checkpoint import snapshot
from ma2mba.training.checkpoint.code_version import code_version
from ma2mba.training.checkpoint.optimizer_files import ABOUT
from ma2mba.training.checkpoint.snapshot import ALIGNMENT, SnapshotMemory, plan_blocks
from ma2mba.training.checkpoint.zero_state import Fragment
from ma2mba.training.faults.shares import Shares
from ma2mba.training.faults.stop_vote import LostRank
from ma2mba.training.recipe.loading import parse_recipe
from ma2mba.training.saver import Contents, Saver
from ma2mba.training.world import World

CPU = torch.device("cpu")
PLENTY = 1 << 40
WAIT = 30
ungated = checkpoint.write_rank


class Engine:
    """Rank `rank` of `ranks`: a model, and an optimizer with two tensors."""

    def __init__(self, model, rank=0, ranks=1, barrier=None, zero_stage=1):
        self.model, self.world, self.zero_stage = model, World(rank, ranks, CPU), zero_stage
        self.barrier = barrier.wait if barrier else lambda: None
        self.state = {key: torch.full((5,), value + rank) for key, value in (("weight", 1.0), ("exp_avg", 2.0))}

    def weights(self):
        yield from stored_tensors(self.model).items()

    def weight_bytes(self):
        return {name: t.nbytes for name, t in self.weights()}

    def optimizer_state(self):
        return [Fragment("a", 5 * self.world.rank, self.state)], 41


@pytest.fixture
def open_saver(model, model_folder, tmp_path):
    """Return a function that returns the saver of an engine, whose run folder is tmp_path."""
    savers = []

    def make(engine, spare=PLENTY, store=None, **keep):
        values = {"stage": "stage1", "data": "d", "init_from": "m", "trainable": {"projector": 1.0}}
        values |= {"global_batch": 4, "steps": 9, "run": str(tmp_path), "checkpoint": keep or {"keep_last": None}}
        shares = Shares(store, engine.world.size)
        savers.append(Saver(engine, parse_recipe(values), model_folder / "tokenizer.json", spare, shares))
        return savers[-1]

    yield make
    for saver in savers:
        saver.__exit__()


def contents(step):
    facts = {"ranks": 1, "zero_stage": 1, "dtype": "torch.float32", "data_fingerprint": "f", "recipe": {}}
    return Contents(Position(0, step), facts | {"code": code_version()}, CardFacts())


def save_now(saver, step):
    saver.start(step, contents(step), last=False)
    return saver.finish().folder


@pytest.fixture
def gate(monkeypatch):
    """Hold every write back until the gate is set."""
    gate = threading.Event()
    monkeypatch.setattr(checkpoint, "write_rank", lambda *given: (gate.wait(WAIT), ungated(*given)))
    yield gate
    gate.set()


def test_a_checkpoint_holds_the_state_of_its_step_while_training_changes_it(model, open_saver, gate, tmp_path):
    engine = Engine(model)
    before = {name: t.clone() for name, t in engine.weights()}
    saver = open_saver(engine)
    saver.start(3, contents(3), last=False)
    with torch.no_grad():
        for tensor in (*engine.state.values(), *model.parameters()):
            tensor.add_(1)
    try:
        assert saver.finished() is None
        assert checkpoint.latest(tmp_path) is None
        gate.set()
        saved = saver.finish()
        assert (saved.step, saved.folder) == (3, tmp_path / "checkpoints" / "step-000003")
        assert saver.finished() is None
    finally:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(1)
    assert checkpoint.latest(tmp_path) == saved.folder
    assert checkpoint.is_complete(saved.folder)
    written = load_file(saved.folder / "optimizer" / "rank-00000-000.safetensors")
    assert {key: t.tolist() for key, t in written.items()} == {"weight/a": [1.0] * 5, "exp_avg/a": [2.0] * 5}
    weights = load_model(saved.folder / "model", dtype=torch.float32)[0].state_dict()
    assert all(torch.equal(weights[name], t) for name, t in before.items())


def test_optimizer_files_have_the_bytes_of_the_library(model, open_saver):
    engine = Engine(model)
    path = save_now(open_saver(engine), 3) / "optimizer" / "rank-00000-000.safetensors"
    about = {ABOUT: '{"steps": 41, "starts": {"a": 0}}'}
    assert path.read_bytes() == save({f"{key}/a": t for key, t in engine.state.items()}, about)


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_without_memory_a_share_is_on_disk_before_training_goes_on(model, open_saver, monkeypatch, zero_stage, caplog):
    with caplog.at_level("INFO", "ma2mba"):
        saver = open_saver(Engine(model, zero_stage=zero_stage), spare=100)
    assert "training waits until they are on disk" in caplog.text
    threads = []
    monkeypatch.setattr(
        checkpoint, "write_rank", lambda *given: (threads.append(threading.current_thread()), ungated(*given))
    )
    direct = save_now(saver, 3)
    expected = save_now(open_saver(Engine(model)), 4)
    assert threads[0] is threading.main_thread()
    assert threads[1] is not threading.main_thread()
    assert checkpoint.is_complete(direct)
    for path in expected.rglob("*.safetensors"):
        assert (direct / path.relative_to(expected)).read_bytes() == path.read_bytes()


def test_a_host_that_refuses_memory_and_a_last_save_that_comes_early(model, open_saver, monkeypatch):
    """Both are written straight to disk."""
    direct, hold = [], threading.Event()
    take, empty = snapshot.take_snapshot, torch.empty

    def noted(engine, memory):
        direct.append(memory is None)
        return take(engine, memory)

    def refused(*sizes, **options):
        raise RuntimeError("can't allocate memory")

    def late(*sizes, **options):
        hold.wait(WAIT)
        return empty(*sizes, **options)

    monkeypatch.setattr("ma2mba.training.saver.take_snapshot", noted)
    monkeypatch.setattr(snapshot.torch, "zeros", refused)
    assert checkpoint.is_complete(save_now(open_saver(Engine(model)), 3))
    monkeypatch.setattr(snapshot.torch, "zeros", late)
    saver = open_saver(Engine(model))
    saver.start(6, contents(6), last=True)
    assert saver.finish().step == 6
    hold.set()
    assert checkpoint.is_complete(save_now(saver, 9))
    assert direct == [True, True, False]


def test_an_error_of_the_thread_is_told_once_in_one_line_and_the_checkpoint_before_stays(
    model, open_saver, monkeypatch, tmp_path
):
    saver = open_saver(Engine(model))
    first = save_now(saver, 3)

    def full(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_rank", full)
    saver.start(6, contents(6), last=False)
    saver.wait()
    with pytest.raises(UserError) as caught:
        saver.finished()
    assert str(caught.value).startswith(f"{tmp_path}/checkpoints/.step-000006.tmp: cannot be written (No space left")
    assert "\n" not in str(caught.value)
    assert saver.finished() is None
    assert checkpoint.latest(tmp_path) == first
    assert checkpoint.is_complete(first)


def test_bytes_that_the_disk_changes_are_noticed_before_latest_names_them(model, open_saver, monkeypatch, tmp_path):
    saver = open_saver(Engine(model))
    first = save_now(saver, 3)
    kept = saving.save_model  # syncs the files; they are verified after it

    def save_and_flip(*given):
        hashes = kept(*given)
        (path,) = (given[2] / name for name in hashes)
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
        return hashes

    monkeypatch.setattr(saving, "save_model", save_and_flip)
    saver.start(6, contents(6), last=False)
    with pytest.raises(UserError, match=r"model/model\.safetensors: cannot be written \(the bytes read back differ"):
        saver.finish()
    assert checkpoint.latest(tmp_path) == first


def test_old_checkpoints_are_removed_after_the_new_one_is_complete(model, open_saver, tmp_path):
    saver = open_saver(Engine(model), keep_last=1, keep_every=4)
    for step in (2, 4, 6, 8):
        save_now(saver, step)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["latest", "step-000004", "step-000008"]


def test_rank_0_publishes_when_all_shares_are_written(model, open_saver, gate, tmp_path, monkeypatch):
    first, second, begin_rank_1 = two_ranks(model, open_saver)
    gated = checkpoint.write_rank
    monkeypatch.setattr(checkpoint, "write_rank", lambda *given: (gated if given[1] else ungated)(*given))
    thread = begin_rank_1()
    first.start(3, contents(3), last=False)
    thread.join()
    first.wait(0.5)
    assert checkpoint.latest(tmp_path) is None
    gate.set()
    thread = threading.Thread(target=second.finish)
    thread.start()
    folder = first.finish().folder
    thread.join()
    assert checkpoint.is_complete(folder)
    assert len(list((folder / "optimizer").iterdir())) == 2


def test_rank_0_does_not_wait_for_a_rank_that_cannot_write(model, open_saver, tmp_path, monkeypatch):
    first, second, begin_rank_1 = two_ranks(model, open_saver)

    def write(where, rank, state):
        if rank == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        ungated(where, rank, state)

    monkeypatch.setattr(checkpoint, "write_rank", write)
    thread = begin_rank_1()
    first.start(3, contents(3), last=False)
    thread.join()
    first.wait(WAIT)
    with pytest.raises(LostRank):
        first.finished()
    second.wait(WAIT)
    with pytest.raises(UserError, match="No space left"):
        second.finished()
    assert checkpoint.latest(tmp_path) is None


def two_ranks(model, open_saver):
    """Return the savers of two ranks, and a function that begins a save on rank 1, in a thread."""
    barrier, store = threading.Barrier(2), HashStore()
    first, second = (open_saver(Engine(model, rank, 2, barrier), store=store) for rank in (0, 1))

    def begin():
        thread = threading.Thread(target=second.start, args=(3, contents(3)), kwargs={"last": False})
        thread.start()
        return thread

    return first, second, begin


def test_blocks_hold_every_tensor_once_and_aligned(monkeypatch):
    monkeypatch.setattr(snapshot, "BLOCK_BYTES", 256)
    sizes = {"a": 100, "b": 4, "c": 1000, "d": 0, "e": 7, "scalar": 4}
    blocks = list(plan_blocks(sizes))
    assert [list(places) for _, places in blocks] == [["a", "b", "c"], ["d", "e", "scalar"]]
    for nbytes, places in blocks:
        ends = 0
        for name, (start, stop) in places.items():
            assert start % ALIGNMENT == 0
            assert start >= ends
            assert stop - start == sizes[name]
            ends = stop
        assert ends <= nbytes


def test_copies_of_every_shape_and_dtype():
    tensors = {
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 3, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "turned": torch.arange(6.0).view(2, 3).T,
    }
    memory = SnapshotMemory({name: t.nbytes for name, t in tensors.items()}, CPU)
    assert memory.ready(wait=True)
    for name, tensor in tensors.items():
        copied = memory.copy(name, tensor)
        assert torch.equal(copied, tensor)
        assert copied.dtype == tensor.dtype
        assert copied.data_ptr() != tensor.data_ptr() or not tensor.numel()
    memory.close()
    assert not memory.ready(wait=True)
