"""A random LLaVA whose decoder, 16 layers of width 1024, is large enough that arithmetic takes most of its time."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.train.demo.build import build_config, build_processor

NAME = "wide"
PIXELS, PATCH = 128, 8  # 256 visual tokens


def load_wide(device: str) -> tuple[Any, Any]:
    """Model and processor, as ``vispco.load_model`` gives them; bfloat16 on a GPU, float32 on a CPU."""
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(0)
    config = build_config(16)
    config.vision_config.image_size, config.vision_config.patch_size = PIXELS, PATCH
    text = config.text_config
    text.hidden_size, text.intermediate_size = 1024, 2752
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = 16, 16, 64
    model = LlavaForConditionalGeneration(config).eval()
    processor = build_processor()
    processor.patch_size = PATCH
    side = {"height": PIXELS, "width": PIXELS}
    processor.image_processor.size = processor.image_processor.crop_size = side
    return model.to(device, torch.float32 if device == "cpu" else torch.bfloat16), processor
