"""The second demo VLM: a stock transformers Qwen2.5-VL with the size and the task of the first.

Vision tower with windows (patch 8, merged 2x2: 64 visual tokens of a 128x128 picture, a window for each of the
mosaic's four pictures), a full-attention block after every windowed one; decoder of 8 layers of width 96 with positions
of three axes. Its words have the token ids of the LLaVA demo, so that weights can be carried over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.train.demo.build import IMAGE_PIXELS, vocabulary, word_tokenizer
from benchmarks.train.demo.packing import Prefix

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from vispco.models.demo.pictures_only import Qwen25VLPicturesProcessor
    from vispco.tasks.mosaic import Scene

PATCH_PIXELS, MERGE, FRAMES = 8, 2, 2
GRID = IMAGE_PIXELS // PATCH_PIXELS
SIDE = GRID // MERGE
NAMES = {
    "<pad>": "<|endoftext|>",
    "<s>": "<|im_start|>",
    "</s>": "<|im_end|>",
    "<image>": "<|image_pad|>",
}
FURTHER = ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
# One turn and no words around it: what the model reads is what the LLaVA demo reads, in Qwen's marks.
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def qwen_vocabulary() -> dict[str, int]:
    """The LLaVA demo's words at their ids, its marks by Qwen's names, and Qwen's further marks behind them."""
    words = [NAMES.get(word, word) for word in vocabulary()]
    return {word: index for index, word in enumerate([*words, *FURTHER])}


def build_processor() -> Qwen25VLPicturesProcessor:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from vispco.models.demo.pictures_only import Qwen25VLPicturesProcessor

    tokenizer = word_tokenizer(
        qwen_vocabulary(),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "start_token": "<|im_start|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        },
    )
    pixels = IMAGE_PIXELS * IMAGE_PIXELS
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=PATCH_PIXELS,
        merge_size=MERGE,
        temporal_patch_size=FRAMES,
        size={"shortest_edge": pixels, "longest_edge": pixels},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return Qwen25VLPicturesProcessor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE)


def build_config() -> Qwen2_5_VLConfig:
    from transformers import Qwen2_5_VLConfig

    vocab = qwen_vocabulary()
    vision = {
        "depth": 4,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_heads": 4,
        "patch_size": PATCH_PIXELS,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": FRAMES,
        "window_size": IMAGE_PIXELS // 2,
        "fullatt_block_indexes": [1, 3],
        "out_hidden_size": 96,
    }
    text = {
        "vocab_size": len(vocab),
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": MROPE_SECTION},
        "pad_token_id": vocab["<|endoftext|>"],
        "bos_token_id": None,
        "eos_token_id": vocab["<|im_end|>"],
        "tie_word_embeddings": False,
    }
    return Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=vocab["<|image_pad|>"],
        video_token_id=vocab["<|video_pad|>"],
        vision_start_token_id=vocab["<|vision_start|>"],
        vision_end_token_id=vocab["<|vision_end|>"],
        tie_word_embeddings=False,
    )


# A head has 8 frequencies, 1 to 0.0003, and 8 rows and columns need the fastest four: so rows and columns take turns
# (rows 1 and 0.1, columns 0.3 and 0.03), and time, which a picture has not, gets one of the others. Written as runs of
# frequencies for time, rows, columns, time, ...; the usual three runs would leave the columns the slowest.
ROPE_THETA, MROPE_SECTION = 10000.0, [0, 1, 1, 0, 1, 1, 1, 1, 2]


def build_model(seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """The untrained model."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(build_config())


def pixel_patches(scenes: list[Scene]) -> dict[str, Tensor]:
    """What the processor would give (a test compares them): patches [256 B, 384] and grids [B, 3]."""
    import torch

    pixels = torch.from_numpy(np.stack([scene.pixels() for scene in scenes])).float() / 127.5 - 1.0
    cells = pixels.view(len(scenes), SIDE, MERGE, PATCH_PIXELS, SIDE, MERGE, PATCH_PIXELS, 3)
    patches = cells.permute(0, 1, 4, 2, 5, 7, 3, 6).unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, FRAMES, -1, -1)
    return {
        "pixel_values": patches.reshape(len(scenes) * GRID * GRID, -1),
        "image_grid_thw": torch.tensor([[1, GRID, GRID]] * len(scenes)),
    }


def qwen_prefix() -> Prefix:
    vocab = qwen_vocabulary()
    image = [vocab["<|image_pad|>"]] * SIDE * SIDE
    ids = [vocab["<|im_start|>"], vocab["<|vision_start|>"], *image, vocab["<|vision_end|>"]]
    rows, columns = np.divmod(np.arange(SIDE * SIDE), SIDE)
    start, after = np.array([0, 1]), np.array([2 + SIDE])
    axes = [np.concatenate([start, 2 + axis, after]) for axis in (0 * rows, rows, columns)]
    return Prefix(ids, np.stack(axes), 2, 3 + SIDE, vocab["<|im_end|>"], vocab["<|endoftext|>"])


def carry_decoder(model: Any, demo: Any) -> None:
    """Start ``model``'s decoder as that of the LLaVA ``demo``: layers, head, and the words by their ids.

    The marks around the picture start as the mark that begins a text; biases, which Llama has not, stay zero.
    """
    import torch

    source = demo.state_dict()
    target = model.state_dict()
    begins, words = vocabulary()["<s>"], len(vocabulary())
    with torch.no_grad():
        for name, value in target.items():
            if not name.startswith(("model.language_model.", "lm_head.")):
                continue
            given: torch.Tensor | None = source.get(name)
            if given is None:
                assert name.endswith("bias"), name
                value.zero_()
            elif given.shape == value.shape:
                value.copy_(given)
            else:
                value[:words] = given
                value[words:] = given[begins]
