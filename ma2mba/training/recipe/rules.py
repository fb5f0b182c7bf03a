"""Values of a recipe that are right alone and wrong together."""

from ma2mba.training.recipe.schema import Recipe

Conflict = tuple[tuple[str, ...], str]
"""The keys, and what to do."""


def conflicts(recipe: Recipe) -> list[Conflict]:
    """All that a recipe has."""
    r = recipe
    rules: list[tuple[bool, tuple[str, ...], str]] = [
        (
            r.global_batch % r.micro_batch != 0,
            ("global_batch", "micro_batch"),
            f"global_batch: {r.global_batch} is not a multiple of micro_batch {r.micro_batch}; change one",
        ),
        (
            r.epochs is None and r.steps is None,
            ("epochs", "steps"),
            "epochs: missing, and so is steps; give one of them",
        ),
        (
            r.epochs is not None and r.steps is not None,
            ("epochs", "steps"),
            f"epochs: {r.epochs} stands beside steps: {r.steps}; give only one (the other: null)",
        ),
        (
            not r.trainable.parts,
            ("trainable",),
            "trainable: nothing is trained; give a learning rate to one of projector, language_model, vision",
        ),
        (
            not all(0 <= beta < 1 for beta in r.optimizer.betas),
            ("optimizer",),
            f"optimizer.betas: {list(r.optimizer.betas)} must each be at least 0 and below 1, as [0.9, 0.95]",
        ),
        (r.data == [], ("data",), "data: an empty list; name at least one shard folder"),
    ]
    found: list[Conflict] = [(keys, text) for broken, keys, text in rules if broken]
    return found + _magc_conflicts(recipe) + _start_conflicts(recipe)


def _magc_conflicts(recipe: Recipe) -> list[Conflict]:
    """The same for how a sequence is checkpointed."""
    magc, ranks = recipe.magc, recipe.parallel.sequence
    if magc == "auto":
        return []
    rules: list[tuple[bool, tuple[str, ...], str]] = [
        (
            magc.graphs and ranks > 1,
            ("magc", "parallel"),
            f"magc.graphs: true stands beside parallel.sequence: {ranks}, whose exchanges between ranks are not "
            "recorded; set one to false or 1",
        ),
        (
            magc.graphs and magc.nesting == "layer",
            ("magc",),
            "magc.graphs: true stands beside magc.nesting: layer, which is not captured; set one to false or sequence",
        ),
        (
            magc.memo_chunks > 0 and magc.graphs,
            ("magc",),
            f"magc.memo_chunks: {magc.memo_chunks} stands beside magc.graphs: true, and captured chunks keep no memos; "
            "set one to 0 or false",
        ),
        (
            magc.memo_chunks > 0 and magc.nesting == "layer",
            ("magc",),
            f"magc.memo_chunks: {magc.memo_chunks} stands beside magc.nesting: layer, which keeps no memos; "
            "set one to 0 or sequence",
        ),
    ]
    return [(keys, text) for broken, keys, text in rules if broken]


def _start_conflicts(recipe: Recipe) -> list[Conflict]:
    """The same for what a run starts from."""
    source = recipe.init_from
    found: list[Conflict] = []
    if source is None and recipe.model is None:
        text = "init_from: missing, and so is model; name a run or model folder, or describe a new model under model"
        found.append((("init_from", "model"), text))
    if source is not None and not isinstance(source, str):
        if not source.language_model and not source.vision:
            text = "init_from: names neither language_model nor vision; name one of them, or a run or model folder"
            found.append((("init_from",), text))
        if recipe.model is None and not (source.language_model and source.vision):
            text = "model: missing, and init_from does not name both language_model and vision; describe the model"
            found.append((("init_from", "model"), text))
    return found
