"""The loader: from shards to batches, in background threads."""

import itertools
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from ma2mba.data.batch import collate
from ma2mba.data.dataset import Dataset
from ma2mba.data.loader import READER_NICENESS, Loader, _lower_priority
from ma2mba.data.sampler import Position, Sampler
from ma2mba.errors import UserError
from tests.unit.data.toy_shards import write_shards

SIZES = [(3, 4), (0, 5), (7, 2), (1, 9), (130, 3), (5, 5)]
K = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards") / "toy", SIZES)


@pytest.fixture
def dataset(folder):
    return Dataset([folder], 28, K)


def sampler(dataset, ranks=1):
    return Sampler(dataset.length_N, dataset.targets_N, dataset.frames_N, global_batch=2, micro_batch=1, ranks=ranks)


def test_the_index_alone_predicts_what_a_batch_holds(dataset):
    for i in range(len(dataset)):
        batch = collate([dataset[i]], K)
        assert batch.ids_BS.shape[1] == dataset.length_N[i]
        assert batch.supervised == dataset.targets_N[i] > 0
        assert len(batch.frames) == dataset.frames_N[i] == SIZES[i][0]


def test_frames_are_those_that_were_written(dataset):
    frames_NCHW = dataset[4].frames[0:130].numpy()
    assert frames_NCHW.shape == (130, 3, 28, 28)
    assert len(np.unique(frames_NCHW.reshape(130, -1), axis=0)) == 130


def test_batches_come_in_the_order_of_the_plan_for_each_rank(dataset):
    for rank in (0, 1):
        made = sampler(dataset, ranks=2)
        with Loader(dataset, made, K, rank=rank, at=Position(0, 2)) as loader:
            for loaded, plan in zip(itertools.islice(loader, 5), made.plans(Position(0, 2)), strict=False):
                got = [batch.sample_ids for batch in loaded.batches]
                assert got == [[f"s{i}" for i in micro] for micro in plan.micro_batches[rank]]
                assert loaded.plan == plan


def test_an_error_in_a_thread_is_raised_now_and_at_every_later_request(dataset, monkeypatch):
    def fail(*_):
        raise UserError("sample s9 is damaged")

    monkeypatch.setattr(dataset.readers[0], "frames", fail)
    with Loader(dataset, sampler(dataset), K) as loader:
        batches = itertools.chain.from_iterable(step.batches for step in loader)
        with pytest.raises(UserError, match="s9 is damaged"):
            list(itertools.islice(batches, 6))
        again = next(iter(loader)).batches
        with pytest.raises(UserError, match="s9 is damaged"):
            list(again)


def test_waiting_is_measured(dataset, monkeypatch):
    """Nothing is read before the loader looks at its clock, which is where waiting begins."""
    reader, asked = dataset.readers[0], threading.Event()
    frames = reader.frames

    def slow(*arguments):
        asked.wait(60)
        time.sleep(0.2)
        return frames(*arguments)

    def clock():
        now = time.perf_counter()
        asked.set()
        return now

    monkeypatch.setattr(reader, "frames", slow)
    monkeypatch.setattr("ma2mba.data.loader.time", SimpleNamespace(perf_counter=clock))
    with Loader(dataset, sampler(dataset), K) as loader:
        assert loader.waited == 0
        list(next(iter(loader)).batches)
        assert loader.waited >= 0.2


def test_closing_ends_the_threads(dataset):
    loader = Loader(dataset, sampler(dataset), K, prefetch=3, threads=2)
    loader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ma2mba-loader")]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_nothing(dataset, monkeypatch, threads):
    """Samples take differently long to read, so that several threads finish out of turn."""
    made, real = sampler(dataset), Dataset.__getitem__
    monkeypatch.setattr(Dataset, "__getitem__", lambda self, i: (time.sleep(0.02 * (i % 3)), real(self, i))[1])
    with Loader(dataset, made, K, threads=threads, prefetch=4) as loader:
        got = [batch.sample_ids for step in itertools.islice(loader, 6) for batch in step.batches]
    plans = itertools.islice(made.plans(Position()), 6)
    assert got == [[f"s{i}" for i in micro] for plan in plans for micro in plan.micro_batches[0]]


def test_data_for_another_image_size_is_refused(folder):
    with pytest.raises(UserError, match="28 pixels wide, but the model needs 56"):
        Dataset([folder], 56, K)


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"gone/manifest.json: not found"):
        Dataset([tmp_path / "gone"], 28, K)


def test_several_folders_are_one_dataset_and_have_another_fingerprint(folder, tmp_path, dataset):
    more = write_shards(tmp_path / "more", [(1, 1)], seed=3)
    both = Dataset([folder, more], 28, K)
    assert len(both) == len(SIZES) + 1
    assert len(both[len(SIZES)].frames) == 1
    assert both.fingerprint != dataset.fingerprint
    assert Dataset([folder], 28, K).fingerprint == dataset.fingerprint


def test_samples_without_targets_are_refused(tmp_path, monkeypatch):
    from tests.unit.data import toy_shards

    monkeypatch.setattr(toy_shards, "encode_conversation", lambda words, turns, frames: _without_answer(words, frames))
    with pytest.raises(UserError, match="sample s0 has no answer to learn from"):
        Dataset([write_shards(tmp_path / "silent", [(2, 2)])], 28, K)


def _without_answer(words, frames):
    from ma2mba.model.conversation import encode_prompt

    return encode_prompt(words, "w1", frames)


@pytest.mark.skipif(sys.platform != "linux", reason="only there does a thread have its own priority")
@pytest.mark.parametrize("lowest", [0, 15])
def test_threads_lower_their_priority_and_never_raise_it(lowest):
    """Only root may lower the niceness: an error in the initializer would break the pool."""

    def step():
        me = threading.get_native_id()
        before = max(lowest, os.getpriority(os.PRIO_PROCESS, me))
        os.setpriority(os.PRIO_PROCESS, me, before)
        _lower_priority()
        return os.getpriority(os.PRIO_PROCESS, me) - max(before, READER_NICENESS)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(step).result() == 0
