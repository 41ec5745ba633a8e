"""Architecture and processor of the LLaVA demos: stock transformers classes, small enough to ship.

CLIP vision tower (128x128 pictures, patch 16: 64 visual tokens), two-layer projector, Llama decoder of width 96 with
8 layers, or more in the deeper demo. The processor inverts pixels, so that the pictures' white ground is zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vispco.tasks.mosaic import CELLS, COLORS, PLURALS, RELATIONS, SHAPES

if TYPE_CHECKING:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

IMAGE_PIXELS = 128
PATCH_PIXELS = 16
LAYERS = 8
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
QUESTION_WORDS = "what color shape is the in one are there a how many others look like ? yes no 0 1 2 3 4"
# Messages one after another with nothing around them, so that pictures and a question give the prompt of the training.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% set outer = loop %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ '' if outer.first and loop.first else ' ' }}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def vocabulary() -> dict[str, int]:
    words = [
        *SPECIAL_TOKENS,
        *QUESTION_WORDS.split(),
        *CELLS,
        *COLORS,
        *SHAPES,
        *PLURALS.values(),
        *" ".join(RELATIONS).split(),
    ]
    return {word: index for index, word in enumerate(dict.fromkeys(words))}


def word_tokenizer(vocab: dict[str, int], **options: Any) -> PreTrainedTokenizerFast:
    """One token a word; ``options`` as of ``PreTrainedTokenizerFast``. Text begins with ``bos_token``, if any."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = Split(Regex(r"[\w-]+|[^\w\s]"), "removed", invert=True)
    begin = options.get("bos_token")
    if begin is not None:
        backend.post_processor = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, vocab[begin])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", padding_side="left", model_max_length=512, **options
    )


def build_processor() -> LlavaProcessor:
    """A stock ``LlavaProcessor``: word-level tokenizer, PIL image processor, ``<s> image question``."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = word_tokenizer(
        vocabulary(),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    image_processor = CLIPImageProcessorPil(
        size={"height": IMAGE_PIXELS, "width": IMAGE_PIXELS},
        crop_size={"height": IMAGE_PIXELS, "width": IMAGE_PIXELS},
        do_center_crop=False,
        image_mean=[1.0, 1.0, 1.0],
        image_std=[-1.0, -1.0, -1.0],
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH_PIXELS,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_config(layers: int = LAYERS) -> LlavaConfig:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vocab = vocabulary()
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_PIXELS,
        patch_size=PATCH_PIXELS,
        projection_dim=64,
    )
    text = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=vocab["<pad>"],
        bos_token_id=vocab["<s>"],
        eos_token_id=vocab["</s>"],
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=vocab["<image>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def build_model(seed: int, layers: int = LAYERS) -> LlavaForConditionalGeneration:
    """The untrained model.

    Vision position embeddings start at standard deviation 0.3 (CLIP's default is 0.02): with the
    default the decoder takes thousands of steps to tell the cells apart.
    """
    import torch
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config(layers))
    embeddings = model.model.vision_tower.embeddings
    torch.nn.init.normal_(embeddings.position_embedding.weight, std=0.3)
    return model
