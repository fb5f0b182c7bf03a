"""Choose or check the plan of a run: does its machine hold the longest samples of its data?"""

import logging
import resource
from dataclasses import dataclass, replace

import torch

from ma2mba.data.dataset import Dataset
from ma2mba.errors import UserError
from ma2mba.magc import Plan
from ma2mba.model.config import ModelConfig
from ma2mba.ops import backend
from ma2mba.planner.choose import Planner
from ma2mba.planner.memory import GIB, USABLE, Host
from ma2mba.planner.predict import Prediction
from ma2mba.planner.schedule import Workload
from ma2mba.training.fit.pricing import Machine, Priced, can_capture, make_planner, moves_weights, setup_of_recipe
from ma2mba.training.recipe.rules import in_recipe
from ma2mba.training.recipe.schema import Magc, Recipe
from ma2mba.training.world import World, ZeroPolicy

HOST_SHARE = 0.8
"""The share of a host's memory for all of its ranks. The system and the data loaders take the rest."""
logger = logging.getLogger("ma2mba.plan")


@dataclass(frozen=True)
class FittedPlan:
    """The plan of a run, the prediction for its heaviest micro-batch, and the reasons against the alternatives."""

    plan: Plan
    prediction: Prediction
    reasons: tuple[str, ...] = ()


def fit_run(recipe: Recipe, world: World, policy: ZeroPolicy, config: ModelConfig, dataset: Dataset) -> FittedPlan:
    """Return the recipe's plan, or with `magc: auto` the fastest plan that fits, and log it. The same on every rank.

    Where ranks share sequences, one rank's share must fit. Raises UserError when the longest samples do not fit: it
    names the predicted memory and a plan that would fit.
    """
    machine = machine_of(world, policy)
    setup = setup_of_recipe(recipe, world.size, world.dtype(recipe.precision), config, policy)
    setup = replace(setup, features=dataset.features is not None)
    planners = []
    for rows, whole in heaviest(recipe, world, config, dataset):
        workload = whole.rank_share(world.sequence)
        planners.append((make_planner(replace(setup, rows=rows), workload, machine), workload))
    if recipe.magc == "auto":
        fitted = _choose(planners, machine)
    else:
        plan = given_plan(recipe.magc, config.language_model.n_layer, policy.stage)
        predictions = [check(planner, workload, plan, machine) for planner, workload in planners]
        fitted = FittedPlan(plan, max(predictions, key=lambda p: p.device_bytes))
    if world.device.type == "cpu":
        fitted = replace(fitted, prediction=_with_program(fitted.prediction))
    longest = max((workload for _, workload in planners), key=lambda workload: workload.tokens)
    logger.info("magc: %s", describe(fitted.plan))
    logger.info("  predicted for at most %s: %s", length(longest), memory(fitted.prediction))
    for reason in fitted.reasons:
        logger.info("  alternative: %s", reason)
    return fitted


def given_plan(magc: Magc, layers: int, zero_stage: int) -> Plan:
    """Return the plan of a recipe's section `magc`. Raise UserError if it cannot train a model of `layers` layers."""
    plan = Plan(**magc.model_dump())
    if problems := plan.conflicts(layers, moves_weights=moves_weights(zero_stage)):
        raise UserError("\n".join(problem.describe(in_recipe) for problem in problems))
    return plan


def _with_program(prediction: Prediction) -> Prediction:
    """Return the prediction with the memory of the program itself, which counts on a CPU."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    device = {"program": max(resident - prediction.device["weights"], 0), **prediction.device}
    return replace(prediction, device=device)


def _choose(planners: list[tuple[Planner, Workload]], machine: Machine) -> FittedPlan:
    """Return the fastest plan for the first workload with which the other workloads fit as well."""
    (first, workload), *others = planners
    choice = first.choose(workload, lambda plan: all(_holds(*other, plan) for other in others))
    if choice is None:
        heaviest_pair = max(planners, key=lambda pair: pair[0].smallest(pair[1]).device_bytes)
        raise UserError(
            f"magc: no plan fits {length(workload)} into {machine.device_bytes / GIB:.1f} GiB: "
            f"{smallest(*heaviest_pair)}. Use a smaller micro_batch, or ZeRO 2 or 3 on more ranks"
        )
    plan = choice.best.plan
    predictions = [choice.best, *(planner.predict(workload, plan) for planner, workload in others)]
    return FittedPlan(plan, max(predictions, key=lambda p: p.device_bytes), choice.reasons)


def _holds(planner: Planner, workload: Workload, plan: Plan) -> bool:
    return not _too_long(planner, workload, plan) and planner.budget.holds(planner.predict(workload, plan))


def _too_long(planner: Planner, workload: Workload, plan: Plan) -> bool:
    """Return True when layers would have to split a chunk that ranks share, which they cannot."""
    return workload.ranks > 1 and planner.splits_calls(workload, plan)


def heaviest(recipe: Recipe, world: World, config: ModelConfig, dataset: Dataset) -> list[tuple[int, Workload]]:
    """Return (rows, workload) of the micro-batches that may need the most memory.

    With `micro_batch`: that number of the longest samples. With `micro_batch_tokens`: one longest sample alone, and as
    many short samples as fit into one micro-batch.
    """
    K, longest = config.tokens_per_frame, int(dataset.length_N.max())
    frames, learned = int(dataset.frames_N.max()), int(dataset.targets_N.max())
    workload = Workload(longest, loss_tokens=learned, ragged=True)
    if frames:
        workload = replace(workload, unit=K, front_tokens=frames * K)
    if recipe.micro_batch_tokens is None:
        return [(recipe.micro_batch, workload)]
    most = min(recipe.micro_batch_tokens // int(dataset.length_N.min()), recipe.global_batch // world.groups)
    together = replace(workload, tokens=min(recipe.micro_batch_tokens // max(most, 1), longest))
    return [(1, workload)] + ([(most, together)] if most > 1 else [])


def machine_of(world: World, policy: ZeroPolicy) -> Machine:
    """Return one rank's share of its host and device. On a CPU, host memory and device memory are the same."""
    share = HOST_SHARE * Host().memory() / world.local_size
    if world.device.type == "cpu":
        return Machine(share, one_memory=True)
    priced: Priced = "kernels" if backend(world.device) == "triton" else "torch"
    graphs = can_capture(policy.stage, world.sequence)
    return Machine(torch.cuda.get_device_properties(world.device).total_memory, share, priced, graphs)


def check(planner: Planner, workload: Workload, plan: Plan, machine: Machine) -> Prediction:
    """Return the prediction for `plan`. A machine whose `host_bytes` is None does not limit host memory here.

    Raises UserError when the plan does not fit, with the predicted memory and a plan that fits if there is one.
    """
    if _too_long(planner, workload, plan):
        raise UserError(
            f"magc.chunk_tokens: {plan.chunk_tokens} gives each of {workload.ranks} ranks {workload.chunk(plan):,} "
            f"tokens of a chunk, but one call of the kernels takes at most {planner.longest_call:,} of this many "
            f"rows. {remedy(planner, workload)}"
        )
    prediction = planner.predict(workload, plan)
    budget = planner.budget if machine.host_bytes is not None else replace(planner.budget, host=1 << 62)
    if budget.holds(prediction):
        return prediction
    raise UserError(
        f"magc: {describe(plan)} needs {memory(prediction)} for {length(workload)}, but only "
        f"{planner.budget.device / GIB:.1f} GiB of {machine.device_bytes / GIB:.1f} GiB"
        + ("" if machine.host_bytes is None else f" and {machine.host_bytes / GIB:.1f} GiB of host memory")
        + f" can be used. {remedy(planner, workload)}"
    )


def remedy(planner: Planner, workload: Workload) -> str:
    """Return a sentence: which plan fits, as a recipe writes it, or how much memory the smallest plan needs."""
    choice = planner.choose(workload)
    if choice is None:
        return f"No plan fits: {smallest(planner, workload)}"
    return f"Use magc: {{{', '.join(f'{key}: {value}' for key, value in _keys(choice.best.plan).items())}}}"


def smallest(planner: Planner, workload: Workload) -> str:
    """Return, in words, the plan that needs the least memory, and the size of a device on which it fits."""
    least = planner.smallest(workload)
    total = f"{least.device_bytes / USABLE / GIB + 0.05:.1f} GiB of device memory"
    if planner.budget.host is not None and least.host_bytes > planner.budget.host:
        total += f" and {least.host_bytes / GIB:.1f} GiB of host memory"
    return f"the smallest plan needs {total} ({describe(least.plan)})"


def _keys(plan: Plan) -> dict[str, str]:
    """Return a plan as a recipe's section. Rarely used keys are left out where they have their defaults."""
    rare = {"stash_every": 1, "memo_chunks": 0, "graphs": False}
    return {key: str(value).lower() for key, value in vars(plan).items() if rare.get(key) != value}


def length(workload: Workload) -> str:
    """Return the tokens of a workload in words."""
    return f"{workload.tokens:,} tokens" + (f" on each of {workload.ranks} ranks" if workload.ranks > 1 else "")


def describe(plan: Plan) -> str:
    """Return a plan in words."""
    every = "" if plan.stash_every == 1 else f" every {plan.stash_every} chunks"
    layers = f"{plan.group_layers} layer{'s' * (plan.group_layers > 1)}"
    memos = f", memos of {plan.memo_chunks} chunk{'s' * (plan.memo_chunks > 1)}" if plan.memo_chunks else ""
    return (
        f"{plan.nesting} nesting, chunks of {plan.chunk_tokens:,} tokens, groups of {layers}, "
        f"states on the {plan.stash}{every}{memos}{', captured as CUDA graphs' if plan.graphs else ''}"
    )


def memory(prediction: Prediction) -> str:
    """Return the predicted memory in words: the total, and GiB by kind of use."""
    named = ", ".join(f"{use} {size / GIB:.2f}" for use, size in prediction.device.items() if size)
    host = f" and {prediction.host_bytes / GIB:.1f} GiB of host memory" if prediction.host_bytes else ""
    return f"{prediction.device_bytes / GIB:.1f} GiB ({named}){host}"
