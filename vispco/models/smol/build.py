"""Architecture and processor of ``smol``: stock transformers classes around SmolLM2.

CLIP vision tower of 3.5 million parameters (224 x 224 pictures, patch 16: 196 visual tokens), two-layer projector,
Llama decoder with 30 layers of width 576.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vispco.models.smol.language import CHAT_TEMPLATE, IMAGE_TOKEN

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

IMAGE_PIXELS = 224
PATCH_PIXELS = 16
GRID = IMAGE_PIXELS // PATCH_PIXELS
VISUAL_TOKENS = GRID**2


def vision_config() -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=8,
        image_size=IMAGE_PIXELS,
        patch_size=PATCH_PIXELS,
        projection_dim=256,
    )


def build_model(language_model: Any, image_token_id: int) -> LlavaForConditionalGeneration:
    """A LLaVA whose decoder has the weights of ``language_model``; tower and projector are untrained."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=language_model.config,
        image_token_id=image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language_model.model.state_dict())
    model.tie_weights()
    return model.eval()


def build_processor(tokenizer: Any) -> LlavaProcessor:
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    side = {"height": IMAGE_PIXELS, "width": IMAGE_PIXELS}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size=side, crop_size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=tokenizer,
        patch_size=PATCH_PIXELS,
        vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )
