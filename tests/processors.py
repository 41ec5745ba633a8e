"""The real processor of every family, in sizes that belong to the small random models of vispco.testing.tiny.

Each function takes a small model and gives it the token ids of its processor. Words are those of the demo's tokenizer.
"""

from __future__ import annotations

from typing import Any

from vispco.models.loading import DEMO


def chat(picture: str = "<image>", video: str = "<video>") -> str:
    """A chat template that writes marks of pictures and videos, and texts, in their order."""
    kinds = f"{{% if c['type'] == 'image' %}}{picture}{{% elif c['type'] == 'video' %}}{video}"
    content = f"{{% for c in m['content'] %}}{kinds}{{% else %}} {{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}"
    return f"{{% for m in messages %}}{content}{{% endfor %}}"


def tokenizer_with(**tokens: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DEMO, extra_special_tokens=tokens)


def of_clip(kind: Any, pixels: Any) -> Any:
    """A processor for a CLIP tower with patches of 8 pixels."""
    return kind(
        pixels,
        tokenizer_with(image_token="<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat(),
    )


def llava(model: Any) -> Any:
    from transformers import CLIPImageProcessor, LlavaProcessor

    pixels = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return of_clip(LlavaProcessor, pixels)


def llava_next(model: Any) -> Any:
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    pixels = LlavaNextImageProcessor(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=model.config.image_grid_pinpoints,
    )
    return of_clip(LlavaNextProcessor, pixels)


def llava_onevision(model: Any) -> Any:
    from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

    side = {"height": 24, "width": 24}
    tokenizer = tokenizer_with(image_token="<image>", video_token="<video>")
    model.config.video_token_id = tokenizer.video_token_id
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=model.config.image_grid_pinpoints),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=side),
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        chat_template=chat(),
    )


def qwen(model: Any) -> Any:
    import transformers

    kind = model.config.model_type
    old = kind in ("qwen2_vl", "qwen2_5_vl")
    names = {"vision_start_token": "<vision>", "vision_end_token": "</vision>"}
    tokenizer = tokenizer_with(image_token="<image>", video_token="<video>", **names)
    for name in ("video", "vision_start", "vision_end"):
        setattr(model.config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    cells = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    videos = transformers.Qwen2VLVideoProcessor if old else transformers.Qwen3VLVideoProcessor
    family = {"qwen2_vl": transformers.Qwen2VLProcessor, "qwen2_5_vl": transformers.Qwen2_5_VLProcessor}
    return family.get(kind, transformers.Qwen3VLProcessor)(
        transformers.Qwen2VLImageProcessor(**cells, size={"shortest_edge": 256, "longest_edge": 1600}),
        tokenizer,
        videos(**cells, size={"shortest_edge": 256, "longest_edge": 1600 if old else 8 * 1600}),
        chat_template=chat(),
    )


def internvl(model: Any) -> Any:
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    names = {"start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>"}
    side = {"height": 16, "width": 16}
    return InternVLProcessor(
        GotOcr2ImageProcessor(size=side, max_patches=4),
        tokenizer_with(context_image_token="<image>", **names),
        InternVLVideoProcessor(size=side),
        image_seq_length=4,
        chat_template=chat(),
    )


def idefics3(model: Any) -> Any:
    from transformers import Idefics3ImageProcessor, Idefics3Processor

    pixels = Idefics3ImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    return Idefics3Processor(pixels, tokenizer_with(image_token="<image>"), image_seq_len=4, chat_template=chat())


def smolvlm(model: Any) -> Any:
    from transformers import SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}
    tokenizer = tokenizer_with(image_token="<image>", video_token="<video>")
    return SmolVLMProcessor(
        SmolVLMImageProcessor(**sizes),
        tokenizer,
        SmolVLMVideoProcessor(**sizes, fps=1, num_frames=8),
        image_seq_len=4,
        chat_template=chat(),
    )


def mistral3(model: Any) -> Any:
    from transformers import PixtralImageProcessor, PixtralProcessor

    marks = {"image_break_token": "<break>", "image_end_token": "<end>"}
    return PixtralProcessor(
        PixtralImageProcessor(size={"longest_edge": 64}, patch_size=4),
        tokenizer_with(image_token="<image>", **marks),
        patch_size=4,
        spatial_merge_size=2,
        image_token="<image>",
        chat_template=chat(),
        **marks,
    )


def gemma3(model: Any) -> Any:
    from transformers import Gemma3ImageProcessor, Gemma3Processor

    tokenizer = tokenizer_with(image_token="<image>", boi_token="<boi>", eoi_token="<eoi>")
    pixels = Gemma3ImageProcessor(size={"height": 32, "width": 32})
    return Gemma3Processor(pixels, tokenizer, image_seq_length=16, chat_template=chat("<boi>"))


def gemma4(model: Any) -> Any:
    from transformers import Gemma4AudioFeatureExtractor, Gemma4ImageProcessor, Gemma4Processor, Gemma4VideoProcessor

    names = {"boi_token": "<boi>", "eoi_token": "<eoi>", "audio_token": "<audio>", "boa_token": "<boa>"}
    tokenizer = tokenizer_with(image_token="<image>", video_token="<|video|>", eoa_token="<eoa>", **names)
    cells = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    made = Gemma4Processor(
        Gemma4AudioFeatureExtractor(),
        Gemma4ImageProcessor(**cells),
        tokenizer,
        Gemma4VideoProcessor(**cells),
        image_seq_length=70,
        chat_template=chat(video="<|video|>"),
    )
    for name in ("image", "video", "audio"):
        setattr(model.config, f"{name}_token_id", getattr(made, f"{name}_token_id"))
    return made


def glm(model: Any) -> Any:
    import transformers

    kind = "Glm46V" if model.config.model_type == "glm46v" else "Glm4v"
    area = {"shortest_edge": 2 * 256, "longest_edge": 2 * 1600}  # of the two equal frames of a picture
    cells = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    marks = {"video_start_token": "<|begin_of_video|>", "video_end_token": "<|end_of_video|>"}
    return getattr(transformers, f"{kind}Processor")(
        getattr(transformers, f"{kind}ImageProcessor")(**cells, size=area),
        tokenizer_with(image_token="<image>", video_token="<video>", **marks),
        getattr(transformers, f"{kind}VideoProcessor")(**cells, size={**area, "longest_edge": 8 * 1600}),
        chat_template=chat(video="<|begin_of_video|><video><|end_of_video|>"),
    )


PROCESSORS = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_vl": qwen,
    "qwen2_5_vl": qwen,
    "qwen3_vl": qwen,
    "qwen3_vl_moe": qwen,
    "qwen3_5": qwen,
    "qwen3_5_moe": qwen,
    "gemma4": gemma4,
    "gemma3": gemma3,
    "internvl": internvl,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "mistral3": mistral3,
    "glm4v": glm,
    "glm46v": glm,
    "glm4v_moe": glm,
}
