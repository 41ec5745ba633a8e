"""Small random models of every family, made from the family's real configuration classes, and batches for them.

Weights are large, so that attention is far from flat and a wrong mask or position shows.
"""

from vispco.testing.tiny.base import IMAGE, LAYERS, TEXT, VIDEO, TinyFamily
from vispco.testing.tiny.gemma import TinyGemma3, TinyGemma4
from vispco.testing.tiny.glm import TinyGlm4v, TinyGlm4vMoe, TinyGlm46V
from vispco.testing.tiny.llava import TinyLlava, TinyLlavaNext, TinyLlavaOnevision
from vispco.testing.tiny.mistral import TinyMistral3
from vispco.testing.tiny.qwen import TinyQwen2VL, TinyQwen3VL, TinyQwen3VLMoe, TinyQwen25VL, TinyQwen35, TinyQwen35Moe
from vispco.testing.tiny.tiles import TinyIdefics3, TinyInternVL, TinySmolVLM

FAMILIES: tuple[TinyFamily, ...] = (
    TinyLlava(),
    TinyLlavaNext(),
    TinyLlavaOnevision(),
    TinyQwen2VL(),
    TinyQwen25VL(),
    TinyQwen3VL(),
    TinyQwen3VLMoe(),
    TinyQwen35(),
    TinyQwen35Moe(),
    TinyGemma3(),
    TinyGemma4(),
    TinyInternVL(),
    TinyIdefics3(),
    TinySmolVLM(),
    TinyMistral3(),
    TinyGlm4v(),
    TinyGlm46V(),
    TinyGlm4vMoe(),
)
TINY: dict[str, TinyFamily] = {family.name: family for family in FAMILIES}

__all__ = ["IMAGE", "LAYERS", "TEXT", "TINY", "VIDEO", "TinyFamily"]
