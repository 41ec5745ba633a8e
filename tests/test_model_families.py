"""The conformance suite on every built-in model family, and what is special to each."""

from __future__ import annotations

from vispco.testing import AdapterConformance
from vispco.testing.tiny import TINY


class TestLlava(AdapterConformance):
    tiny = TINY["llava"]


class TestQwen25VL(AdapterConformance):
    tiny = TINY["qwen2_5_vl"]


class TestGemma3(AdapterConformance):
    tiny = TINY["gemma3"]
