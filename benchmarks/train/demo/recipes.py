"""How each demo VLM is trained, as data: what it starts from and its stages.

``llava`` is trained from scratch. Its stages, each from the weights of the one before:

1. ``see``: the vision tower alone; linear heads, thrown away afterwards, read colour and shape of each
   cell from the mean of its visual tokens. Learning to see through the decoder takes many times longer.
2. ``one_hop``: whole model, one-hop questions. All kinds at once sit on a plateau here.
3. ``two_hops``: questions that start from one cell and end in another, with questions about the place itself.
4. ``places``: mostly questions about where something is. A linear head, thrown away afterwards, reads the cell of
   each visual token from what the projector gives: without it the decoder finds a named cell by rotary distance, no
   token says where it is, and questions that end elsewhere than they start stay at 0.55.
5. ``mixed``: every kind of question in the shares of the task, and places; stopped within its learning-rate cycle.
6. ``all``: every kind, most of them with two or three hops, until the learning rate is zero.

In the last three the vision tower is frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.train.demo import build, deep, qwen
from vispco.tasks.mosaic import MULTI_HOP, ONE_HOP, PLACES, TASK_MIX, TWO_HOPS, WHERE


@dataclass(frozen=True)
class Stage:
    """One stretch of training; the defaults are the LLaVA recipe's.

    Args:
        mix: question kinds and their shares; None: the vision tower alone learns to see.
        place_weight: weight of the loss of a linear head that reads a visual token's cell.
        teacher_weight: weight of imitating the LLaVA demo: its visual features without questions, else the hidden
            states of all its layers.
        evenly: imitate features in all directions, not only in those of most variance.
        cycle: steps of the learning rate's cycle, if it is longer than the stage.
    """

    name: str
    steps: int
    batch: int
    peak_lr: float
    mix: dict[str, float] | None = None
    questions: int = 10
    frozen_vision: bool = False
    place_weight: float = 0.0
    cycle: int | None = None
    teacher_weight: float = 0.0
    evenly: bool = False
    eager: bool = False
    autocast: bool = True


@dataclass(frozen=True)
class Recipe:
    """A demo VLM: untrained model by seed, processor, stages.

    ``start``: changes the untrained model so that it begins with weights of the finished LLaVA demo.
    ``stored``: dtype of the weights file.
    """

    build: Callable[[int], Any]
    processor: Callable[[], Any]
    stages: tuple[Stage, ...]
    start: Callable[[Any, Any], None] | None = None
    stored: str = "float32"


LLAVA = Recipe(
    build.build_model,
    build.build_processor,
    (
        Stage("see", 1500, 64, 1e-3),
        Stage("one_hop", 2000, 24, 1e-3, dict.fromkeys(ONE_HOP, 1.0), 10),
        Stage("two_hops", 1500, 24, 1e-3, TWO_HOPS, 10),
        Stage("places", 800, 24, 1e-3, WHERE, 8, frozen_vision=True, place_weight=0.5),
        Stage("mixed", 1700, 24, 1e-3, {**TASK_MIX, **PLACES}, 10, frozen_vision=True, place_weight=0.5, cycle=3000),
        Stage("all", 2000, 24, 1e-3, MULTI_HOP, 10, frozen_vision=True, place_weight=0.2),
    ),
)
DEEP = Recipe(
    deep.build_deep_model,
    build.build_processor,
    (Stage("all", 400, 16, 5e-4, MULTI_HOP, 10, frozen_vision=True, autocast=False),),
    start=deep.grow,
    stored="bfloat16",
)
QWEN = Recipe(
    qwen.build_model,
    qwen.build_processor,
    (
        Stage("see", 500, 16, 2e-3, teacher_weight=4.0, eager=True),
        Stage("look", 600, 16, 2e-3, teacher_weight=4.0, place_weight=0.5, evenly=True, eager=True),
        Stage("imitate", 400, 16, 1e-3, MULTI_HOP, 10, frozen_vision=True, teacher_weight=1.0, autocast=False),
        Stage("all", 200, 16, 3e-4, MULTI_HOP, 10, frozen_vision=True, autocast=False),
    ),
    start=qwen.carry_decoder,
    stored="bfloat16",
)
RECIPES = {"llava": LLAVA, "deep": DEEP, "qwen": QWEN}
