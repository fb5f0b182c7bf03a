"""FSDP2 around a model that calls the engine is exact; FSDP2 on single layers is refused. Two ranks, over gloo."""

import copy
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.parity.test_silent_gradients import BOUND, PLANS, Model, given, plain, with_engine


def work(rank: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=120))
    mesh = init_device_mesh("cpu", (2,))
    for plan in (PLANS[1], PLANS[6]):
        for reshard in (False, True):
            layers, x = given()
            right, model = Model(copy.deepcopy(layers), plain, plan), Model(layers, with_engine, plan)
            right(x).backward()
            fully_shard(model, mesh=mesh, reshard_after_forward=reshard)
            model(x).backward()
            for found, exact in zip(model.parameters(), right.parameters(), strict=True):
                assert (found.grad.full_tensor() - exact.grad).norm() < BOUND * exact.grad.norm()
    layers, x = given()
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    try:
        Model(layers, with_engine, PLANS[1])(x)
    except ValueError as error:
        (folder / f"{rank}.txt").write_text(str(error))
    dist.destroy_process_group()


def test_a_sharded_model_is_exact_and_sharded_layers_are_refused(tmp_path):
    """BEFORE: with sharded layers all gradients were zeros or None, and training stood still."""
    torch.set_num_threads(1)
    mp.spawn(work, (tmp_path,), 2)
    for rank in range(2):
        words = (tmp_path / f"{rank}.txt").read_text()
        assert words.startswith("layer 0 (FSDPGRULayer): FSDP has sharded this module")
