"""Whether a run fits its machine, and the plan that suits it, by the longest samples of its data."""

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
from ma2mba.planner.host_memory import Host
from ma2mba.planner.memory import GIB, USABLE
from ma2mba.planner.predict import Prediction
from ma2mba.planner.schedule import Workload
from ma2mba.training.fit.pricing import (
    Machine,
    Priced,
    can_capture,
    make_planner,
    moves_weights,
    setup_of_recipe,
)
from ma2mba.training.recipe.rules import in_recipe
from ma2mba.training.recipe.schema import Magc, Recipe
from ma2mba.training.world import World, ZeroPolicy

HOST_SHARE = 0.8
"""Of a host's memory, for all of its ranks; the rest is the system's and the loader's."""
logger = logging.getLogger("ma2mba.plan")


@dataclass(frozen=True)
class FittedPlan:
    """The plan of a run and what its heaviest micro-batch takes."""

    plan: Plan
    prediction: Prediction
    reasons: tuple[str, ...] = ()


def fit_run(recipe: Recipe, world: World, policy: ZeroPolicy, config: ModelConfig, dataset: Dataset) -> FittedPlan:
    """The recipe's plan, or with `magc: auto` the fastest that fits; said in the log. The same on every rank.

    Where ranks share sequences, what must fit is one rank's part of them.
    Raises UserError when the longest samples do not fit, with the parts and a plan with which they would.
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
    logger.info("  predicted for %s at most: %s", length(longest), parts(fitted.prediction))
    for reason in fitted.reasons:
        logger.info("  instead, %s", reason)
    return fitted


def given_plan(magc: Magc, layers: int, zero_stage: int) -> Plan:
    """Return the plan of a recipe's section `magc`. Raise UserError if a model of `layers` layers cannot train so."""
    plan = Plan(**magc.model_dump())
    if problems := plan.conflicts(layers, moves_weights=moves_weights(zero_stage)):
        raise UserError("\n".join(problem.describe(in_recipe) for problem in problems))
    return plan


def _with_program(prediction: Prediction) -> Prediction:
    """What is resident now besides the weights, which on a CPU counts as well."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    device = {"program": max(resident - prediction.device["weights"], 0), **prediction.device}
    return replace(prediction, device=device)


def _choose(planners: list[tuple[Planner, Workload]], machine: Machine) -> FittedPlan:
    """The fastest plan for the first sequence with which the others fit as well."""
    (first, workload), *others = planners
    choice = first.choose(workload, lambda plan: all(_holds(*other, plan) for other in others))
    if choice is None:
        raise UserError(
            f"magc: nothing fits {length(workload)} into {machine.device_bytes / GIB:.1f} GiB; "
            f"{remedy(first, workload)}; or take a smaller micro_batch, or more ranks with ZeRO 2 or 3"
        )
    plan = choice.best.plan
    predictions = [choice.best, *(planner.predict(workload, plan) for planner, workload in others)]
    return FittedPlan(plan, max(predictions, key=lambda p: p.device_bytes), choice.reasons)


def _holds(planner: Planner, workload: Workload, plan: Plan) -> bool:
    return not _too_long(planner, workload, plan) and planner.budget.holds(planner.predict(workload, plan))


def _too_long(planner: Planner, workload: Workload, plan: Plan) -> bool:
    """Whether chunks would have to be split, which those that ranks share cannot be."""
    return workload.ranks > 1 and planner.splits_calls(workload, plan)


def heaviest(recipe: Recipe, world: World, config: ModelConfig, dataset: Dataset) -> list[tuple[int, Workload]]:
    """Rows and sequence of the micro-batches that take most: of the longest samples; where rows follow from
    `micro_batch_tokens`, one of them alone, and as many short ones as may come together."""
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
    """A rank's share of what there is. On a CPU the host's memory is the device's."""
    share = HOST_SHARE * host_memory() / world.local_size
    if world.device.type == "cpu":
        return Machine(share, one_memory=True)
    priced: Priced = "kernels" if backend(world.device) == "triton" else "torch"
    records = can_capture(policy.stage, world.sequence)
    return Machine(torch.cuda.get_device_properties(world.device).total_memory, share, priced, records)


def host_memory() -> int:
    """Bytes of memory of this host, or of the container or job that runs here."""
    return Host().memory()


def check(planner: Planner, workload: Workload, plan: Plan, machine: Machine) -> Prediction:
    """Predict a step under `plan`. Without a limit of host memory any amount will do.

    Raises UserError with the predicted parts, and a plan that would fit if there is one.
    """
    if _too_long(planner, workload, plan):
        raise UserError(
            f"magc.chunk_tokens: {plan.chunk_tokens} gives each of {workload.ranks} ranks {workload.chunk(plan):,} "
            f"tokens of a chunk, but one call of the kernels takes at most {planner.longest_call:,} of this many "
            f"rows; {remedy(planner, workload)}"
        )
    prediction = planner.predict(workload, plan)
    budget = planner.budget if machine.host_bytes is not None else replace(planner.budget, host=1 << 62)
    if budget.holds(prediction):
        return prediction
    raise UserError(
        f"magc: {describe(plan)} needs {parts(prediction)} for {length(workload)}, but "
        f"{planner.budget.device / GIB:.1f} GiB of {machine.device_bytes / GIB:.1f} GiB can be used"
        + ("" if machine.host_bytes is None else f" and {machine.host_bytes / GIB:.1f} GiB of host memory")
        + f"; {remedy(planner, workload)}"
    )


def remedy(planner: Planner, workload: Workload) -> str:
    """What to do when something does not fit."""
    choice = planner.choose(workload)
    if choice:
        keys = ", ".join(f"{key}: {value}" for key, value in _keys(choice.best.plan).items())
        return f"this would fit: magc: {{{keys}}}"
    least = planner.smallest(workload)
    total = f"{needed_gib(least)} GiB of device memory"
    if planner.budget.host is not None and least.host_bytes > planner.budget.host:
        total += f" and {least.host_bytes / GIB:.1f} GiB of host memory"
    return f"no plan fits: the smallest that would takes {total} ({describe(least.plan)})"


def _keys(plan: Plan) -> dict[str, str]:
    """A plan as a recipe's section; what is seldom other than its default only where it is."""
    seldom = {"stash_every": 1, "memo_chunks": 0, "graphs": False}
    return {key: str(value).lower() for key, value in vars(plan).items() if seldom.get(key) != value}


def needed_gib(prediction: Prediction) -> str:
    """The memory of a device, in GiB, on which a prediction fits."""
    return f"{prediction.device_bytes / USABLE / GIB + 0.05:.1f}"


def length(workload: Workload) -> str:
    """The tokens of a workload, in words."""
    return f"{workload.tokens:,} tokens" + (f" on each of {workload.ranks} ranks" if workload.ranks > 1 else "")


def describe(plan: Plan) -> str:
    """A plan in words."""
    every = "" if plan.stash_every == 1 else f" at every {plan.stash_every} chunks' end"
    memos = f", memos of {plan.memo_chunks} chunk{'s' * (plan.memo_chunks > 1)}" if plan.memo_chunks else ""
    return (
        f"{plan.nesting} nesting, chunks of {plan.chunk_tokens:,} tokens, groups of {plan.group_layers} layers, "
        f"states on the {plan.stash}{every}{memos}{', captured as CUDA graphs' if plan.graphs else ''}"
    )


def parts(prediction: Prediction) -> str:
    """Bytes by part, in GiB."""
    named = ", ".join(f"{name} {size / GIB:.2f}" for name, size in prediction.device.items() if size)
    host = f" and {prediction.host_bytes / GIB:.1f} GiB of host memory" if prediction.host_bytes else ""
    return f"{prediction.device_bytes / GIB:.1f} GiB ({named}){host}"
