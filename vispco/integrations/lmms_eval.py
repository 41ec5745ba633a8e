"""What lmms-eval gets when it looks for models (entry point group ``lmms_eval.models``)."""

from __future__ import annotations

from typing import Any

MODEL = "vispco.integrations.lmms_eval_model.VispcoModel"


def manifest() -> Any:
    """``--model vispco``. lmms-eval asks while it is being imported, so the model's module is only named."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="vispco", simple_class_path=MODEL)
