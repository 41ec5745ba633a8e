"""Qwen2-VL: as Qwen2.5-VL, with a vision tower without windows and a video's frames at equal steps."""

from __future__ import annotations

from typing import ClassVar

from vispco.models.families import ADAPTERS
from vispco.models.qwen2_5_vl import Qwen25VLAdapter


@ADAPTERS.register("qwen2_vl")
class Qwen2VLAdapter(Qwen25VLAdapter):
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    examples: ClassVar[tuple[str, ...]] = ("Qwen/Qwen2-VL-7B-Instruct",)
