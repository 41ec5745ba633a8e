"""What differs between the demo VLMs' families while they are trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from benchmarks.train.demo import qwen
from benchmarks.train.demo.build import vocabulary
from benchmarks.train.demo.data import pixel_values
from benchmarks.train.demo.packing import VISUAL_TOKENS, Prefix, llava_prefix
from vispco.tasks.mosaic import Scene


class TrainedFamily(ABC):
    """How a family's words, positions and pictures get into a model, and which part of it sees."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    @abstractmethod
    def vocabulary(self) -> dict[str, int]: ...

    @property
    @abstractmethod
    def prefix(self) -> Prefix: ...

    @abstractmethod
    def vision(self) -> nn.Module:
        """All that turns pixels into visual tokens and learns in a stage without questions."""

    @abstractmethod
    def frozen(self) -> list[nn.Module]:
        """What a stage with frozen vision leaves as it is."""

    @abstractmethod
    def seen_width(self) -> int:
        """Width of :meth:`seen`."""

    @abstractmethod
    def seen(self, scenes: list[Scene], device: str) -> Tensor:
        """[B, 64, W]: what the vision tower makes of each visual token, in reading order."""

    @abstractmethod
    def pictures(self, scenes: list[Scene], device: str) -> dict[str, Tensor]:
        """The forward's arguments for pixels."""


class LlavaTrained(TrainedFamily):
    @property
    def vocabulary(self) -> dict[str, int]:
        return vocabulary()

    @property
    def prefix(self) -> Prefix:
        return llava_prefix(vocabulary())

    def vision(self) -> nn.Module:
        tower: nn.Module = self.model.model.vision_tower
        return tower

    def frozen(self) -> list[nn.Module]:
        return [self.vision()]

    def seen_width(self) -> int:
        return int(self.model.config.vision_config.hidden_size)

    def seen(self, scenes: list[Scene], device: str) -> Tensor:
        outputs = self.vision()(pixel_values(scenes).to(device), output_hidden_states=True)
        features: Tensor = outputs.hidden_states[-1][:, 1:]
        return features

    def pictures(self, scenes: list[Scene], device: str) -> dict[str, Tensor]:
        return {"pixel_values": pixel_values(scenes).to(device)}


class QwenTrained(TrainedFamily):
    @property
    def vocabulary(self) -> dict[str, int]:
        return qwen.qwen_vocabulary()

    @property
    def prefix(self) -> Prefix:
        return qwen.qwen_prefix()

    def vision(self) -> nn.Module:
        tower: nn.Module = self.model.model.visual
        return tower

    def frozen(self) -> list[nn.Module]:
        visual = self.model.model.visual
        return [visual.patch_embed, visual.blocks]

    def seen_width(self) -> int:
        return int(self.model.config.vision_config.out_hidden_size)

    def seen(self, scenes: list[Scene], device: str) -> Tensor:
        inputs = self.pictures(scenes, device)
        features: Tensor = self.vision()(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        return features.view(len(scenes), VISUAL_TOKENS, -1)

    def pictures(self, scenes: list[Scene], device: str) -> dict[str, Tensor]:
        return {name: value.to(device) for name, value in qwen.pixel_patches(scenes).items()}


def family_of(model: Any) -> TrainedFamily:
    families = {"llava": LlavaTrained, "qwen2_5_vl": QwenTrained}
    return families[model.config.model_type](model)
