"""LLaVA-1.5: any vision tower, two-layer projector, Llama-like decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vispco.errors import ModelError
from vispco.models.base import ModelAdapter
from vispco.models.families import ADAPTERS
from vispco.models.grids import Grid, fixed_grids, run_lengths

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.vision import EncoderWatch, VisionWatch


# Towers with one position embedding a patch, which transformers interpolates for pictures of another size if asked.
INTERPOLATED = ("clip_vision_model", "siglip_vision_model")


@ADAPTERS.register("llava")
class LlavaAdapter(ModelAdapter):
    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    examples: ClassVar[tuple[str, ...]] = ("llava-hf/llava-1.5-7b-hf",)

    def grids(self, inputs: dict[str, Any], runs: Sequence[int]) -> list[Grid]:
        vision, tower = self.model.config.vision_config, self.model.model.vision_tower
        if vision.model_type == "pixtral":
            raise ModelError(
                "a Pixtral tower makes another grid of every picture, and a LLaVA model does not say which, so methods "
                "that read where tokens stand do not run on it; use one that reads attention or features"
            )
        pixels = inputs.get("pixel_values")
        height, width = pixels.shape[-2:] if pixels is not None else (vision.image_size,) * 2
        tokens = (height // vision.patch_size) * (width // vision.patch_size)
        if self.model.config.vision_feature_select_strategy == "full" and has_cls(tower):
            tokens += 1
        return fixed_grids(runs, tokens)

    def encode_images(self, inputs: dict[str, Any]) -> Tensor:
        import torch

        pixels, vision = inputs["pixel_values"], self.model.config.vision_config
        other = pixels.shape[-2:] != (vision.image_size,) * 2 and vision.model_type in INTERPOLATED
        more = {"interpolate_pos_encoding": True} if other else {}
        outputs = self.model.get_image_features(pixel_values=pixels, **more)
        features = torch.cat([part.reshape(-1, part.shape[-1]) for part in outputs.pooler_output])
        if other:
            self._check_apart(inputs["input_ids"], len(features) // len(pixels))
        return features

    def _check_apart(self, input_ids: Tensor, tokens: int) -> None:
        """Once features stand in for pixels, nothing says how many smaller pictures a run of visual tokens holds."""
        runs = run_lengths(self.visual_mask(input_ids, None).cpu())
        if any(run != tokens for run in runs):
            raise ModelError(
                f"{max(runs)} visual tokens of smaller pictures, of {tokens} each, stand side by side in a prompt; put "
                "text between pictures, or leave resolution at 1"
            )

    def watch_vision(self) -> VisionWatch | None:
        from vispco.models.vision import EncoderWatch

        return encoder_watch(self.model, EncoderWatch)


def has_cls(tower: Any) -> bool:
    """Whether a token that is no patch stands first, as in CLIP and not in SigLIP."""
    return hasattr(getattr(getattr(tower, "vision_model", tower), "embeddings", None), "class_embedding")


def encoder_watch(model: Any, kind: type[EncoderWatch], **more: Any) -> VisionWatch | None:
    """Reads the tower of a model of LLaVA's kind; None where its layers are not those of CLIP or SigLIP, or where
    features are not a layer's output."""
    config, tower = model.config, model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    layers = getattr(getattr(tower, "encoder", None), "layers", None)
    chosen = config.vision_feature_layer
    last = chosen if isinstance(chosen, int) else chosen[-1]
    if layers is None or last in (0, -len(layers) - 1):
        return None
    cls = has_cls(tower)
    return kind(
        layers,
        last - 1 if last > 0 else len(layers) + last,
        config.vision_config.num_attention_heads,
        model.model.multi_modal_projector,
        cls=cls,
        drop_cls=cls and config.vision_feature_select_strategy == "default",
        **more,
    )
