"""Prompts to time a model with: noise pictures and a number of words, as the model takes them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vispco.errors import ConfigError
from vispco.models.families import adapter_for

SIZE = 336
GROWTH, SMALLER = 1.25, 6  # of sides, from one to the next; steps from the smallest to SIZE
WIDER = 4  # times the largest side that gave more tokens, beyond which none will
SEVERAL = (2, 4, 8, 16)  # pictures whose tower is timed together
SHARES = (0.1, 0.25, 0.5, 0.75)  # of the visual tokens, of pictures that all have as many


@dataclass(frozen=True, eq=False)
class Prompted:
    """A batch as the model takes it: ``inputs`` with pixels, and the tokens of its longest row. ``texts``: of each row
    where they differ; all have equally many visual tokens. ``pictures`` of ``size`` pixels a side in each."""

    inputs: dict[str, Any]
    visual: int
    text: int
    texts: tuple[int, ...] = ()
    pictures: int = 1
    size: int = SIZE

    @property
    def length(self) -> int:
        return self.visual + self.text


class Prompter:
    """Prompts of noise pictures and a number of words."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor, self.adapter = model, processor, adapter_for(model)

    def make(
        self, pictures: int, words: int | Sequence[int], batch: int, size: int = SIZE, share: float = 1.0
    ) -> Prompted:
        """A batch of equal rows, or of one for each number in ``words``, filled on the left.

        Args:
            size: of a picture's sides, in pixels, where the processor keeps sizes apart.
            share: of its visual tokens (:func:`~vispco.models.resolution.rescaled`).
        """
        from PIL import Image

        from vispco.models.resolution import rescaled
        from vispco.tasks.base import Sample
        from vispco.tasks.rendering import render_prompt

        noise = np.random.default_rng(0).integers(0, 255, (pictures, size, size, 3), dtype=np.uint8)
        images, sizes = rescaled(self.processor, [Image.fromarray(one) for one in noise], share)
        each = [words] * batch if isinstance(words, int) else list(words)
        asked = [Sample("s", "g", images, " ".join(["the"] * count), ("a",)) for count in each]
        texts = [render_prompt(self.processor, sample) for sample in asked]
        shown = [images] * len(each) if images else None
        padded: dict[str, Any] = {"padding": True, "padding_side": "left"}
        made = self.processor(images=shown, text=texts, return_tensors="pt", **padded, **sizes)
        inputs = dict(made.to(self.model.device))
        for key, value in inputs.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                inputs[key] = value.to(self.adapter.dtype())
        visual = int(self.adapter.visual_mask(inputs["input_ids"], None)[0].sum())
        found = (inputs["attention_mask"].sum(dim=1) - visual).tolist()
        return Prompted(inputs, visual, max(found), tuple(found) if len(set(found)) > 1 else (), pictures, size)

    def pictured(self, most: int, batch: int) -> list[Prompted]:
        """Pictures of few visual tokens to ``most`` or more, as far as they go, each with a word beside them.

        One picture as long as a larger one has more tokens: a tower that looks at all of a picture at once takes longer
        for a large one than for several with as many tokens. Then several of the largest.
        """
        sides: list[int] = []
        side, reached = SIZE / GROWTH**SMALLER, 0
        while reached < most and side <= WIDER * max([SIZE, *sides]):
            visual = self.make(1, 1, 1, round(side)).visual
            if visual > reached:
                sides.append(round(side))
                reached = visual
            side *= GROWTH
        found = [self.make(1, 1, batch, side) for side in sides]
        for pictures in SEVERAL:
            if found[-1].visual < most:
                more = self.make(pictures, 1, batch, sides[-1])
                found += [more] if more.visual > found[-1].visual else []
        return found

    def smaller(self, batch: int) -> list[Prompted]:
        """One picture at lower resolutions, for the tower alone, where small pictures have as many visual tokens.

        Empty where they have fewer, or the family has no lower resolution; those that it has, where it has some.
        """
        whole, small = (self.make(1, 1, 1, size).visual for size in (SIZE, round(SIZE / GROWTH**SMALLER)))
        if small < whole:
            return []
        found: dict[int, Prompted] = {}
        for share in SHARES:
            with suppress(ConfigError):  # below what the family can do
                one = self.make(1, 1, batch, share=share)
                found[one.visual] = one
        return [one for visual, one in sorted(found.items()) if visual < whole]
