"""Find values of a recipe that are valid separately and incompatible with each other."""

from ma2mba.magc.plan import Plan
from ma2mba.training.recipe.schema import Recipe

Conflict = tuple[tuple[str, ...], str]
"""The keys of incompatible values, and a message that says what to change."""


def conflicts(recipe: Recipe) -> list[Conflict]:
    """Return every conflict of a recipe."""
    r = recipe
    rules: list[tuple[bool, tuple[str, ...], str]] = [
        (
            r.global_batch % r.micro_batch != 0,
            ("global_batch", "micro_batch"),
            f"global_batch: {r.global_batch} is not a multiple of micro_batch {r.micro_batch}. Change one",
        ),
        (
            r.epochs is None and r.steps is None,
            ("epochs", "steps"),
            "epochs: missing, and so is steps. Give one of the two",
        ),
        (
            r.epochs is not None and r.steps is not None,
            ("epochs", "steps"),
            f"epochs: {r.epochs} is incompatible with steps: {r.steps}. Set one of them to null",
        ),
        (
            not r.trainable.components,
            ("trainable",),
            "trainable: nothing is trained. Give a learning rate to one of projector, language_model, vision",
        ),
        (
            not all(0 <= beta < 1 for beta in r.optimizer.betas),
            ("optimizer",),
            f"optimizer.betas: {list(r.optimizer.betas)} must each be at least 0 and below 1, as [0.9, 0.95]",
        ),
        (r.data == [], ("data",), "data: an empty list. Name at least one shard folder"),
    ]
    found: list[Conflict] = [(keys, text) for broken, keys, text in rules if broken]
    return found + _magc_conflicts(recipe) + _start_conflicts(recipe)


def _magc_conflicts(recipe: Recipe) -> list[Conflict]:
    """Return the conflicts that `Plan` finds without the model; `given_plan` checks the number of layers later."""
    if recipe.magc == "auto":
        return []
    problems = Plan.problems(ranks=recipe.parallel.sequence, **recipe.magc.model_dump())
    return [
        (tuple(key_of(setting.name).split(".")[0] for setting in problem.settings), problem.describe(in_recipe))
        for problem in problems
    ]


def key_of(setting: str) -> str:
    """Return the recipe's key for a setting of `Plan.problems`."""
    return {"ranks": "parallel.sequence", "moves_weights": "zero_config"}.get(setting, f"magc.{setting}")


def in_recipe(setting: str, value: object) -> str:
    """Return a setting of `Plan.problems` as a recipe writes it, for example "magc.graphs: true"."""
    if setting == "moves_weights":
        value = "(a policy of ZeRO stage 3)" if value else "(a policy of ZeRO stage 1 or 2)"
    return f"{key_of(setting)}: {str(value).lower() if isinstance(value, bool) else value}"


def _start_conflicts(recipe: Recipe) -> list[Conflict]:
    """Return the conflicts between `init_from` and `model`."""
    source = recipe.init_from
    found: list[Conflict] = []
    if source is None and recipe.model is None:
        text = "init_from: missing, and so is model. Name a run or model folder, or describe a new model under model"
        found.append((("init_from", "model"), text))
    if source is not None and not isinstance(source, str):
        if not source.language_model and not source.vision:
            text = "init_from: names neither language_model nor vision. Name one of them, or a run or model folder"
            found.append((("init_from",), text))
        if recipe.model is None and not (source.language_model and source.vision):
            text = "model: missing, and init_from does not name both language_model and vision. Describe the model"
            found.append((("init_from", "model"), text))
    return found
