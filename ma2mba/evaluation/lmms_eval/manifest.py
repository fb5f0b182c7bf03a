"""Tell lmms-eval where the model class is."""

from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """Return what the entry point of the group `lmms_eval.models` gives."""
    return ModelManifest(model_id="ma2mba", chat_class_path="ma2mba.evaluation.lmms_eval.model.Ma2mba")
