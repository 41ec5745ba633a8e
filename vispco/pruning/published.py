"""Configurations that papers publish as their defaults, by name, to stand beside any search.

Sources: FastV arXiv 2403.06764 (K, R = removed share); FitPrune arXiv 2409.10197, delete counts per layer of the
official repository ywh187/FitPrune for LLaVA-1.5-7B (32 layers, 576 visual tokens); SparseVLM arXiv 2410.04417,
counts kept at layers 2, 6 and 15 of Gumpest/SparseVLMs, whose names (192, 128, 96, 64) are averages over layers of
the tokens *leaving* each layer; entering, they are 206.5, 145.4, 114.1 and 82.3 with recycling. PyramidDrop arXiv
2410.17247, halved after 8, 16 and 24 layers; DART arXiv 2502.11494, whose budget of 128 keeps 8 * 16 + 4; VTW arXiv
2405.05803 withdraws all visual tokens at once, layer 16 on its command line for 7B, so that nothing is ranked and the
method does not matter; before the decoder: DivPrune arXiv 2503.02175 (ratio), VisionZip arXiv 2412.04467 (dominant and
contextual tokens: 54 + 10, 191 + 30), VisPruner arXiv 2412.01818, CDPruner arXiv 2506.10967 (counts), SCOPE
arXiv 2510.24214 (a ninth), IDPruner's table in Tencent/AngelSlim (a quarter), EVS arXiv 2510.14624 (fourfold), VidCom2
arXiv 2505.14454 (a quarter), PruMerge arXiv 2403.15388 (its mean compression).

Counts become shares of 576 tokens, and a recipe for 32 layers is stretched over the depth of other models:
layer l of L gets what layer 32 l / L has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vispco.errors import ScheduleError
from vispco.pruning.methods.base import Method, make_method
from vispco.pruning.schedule_file import read_schedule_file
from vispco.pruning.schedules import MultiStep, Ratios, Schedule, Step, parse_schedule
from vispco.registry import suggest

LLAVA_LAYERS, LLAVA_TOKENS = 32, 576

# Visual tokens that FitPrune deletes in each layer of LLaVA-1.5-7B, by the share of FLOPs to be saved.
FITPRUNE_DELETED: dict[int, tuple[int, ...]] = {
    40: (0, 1, 21, 13, 14, 11, 41, 53, 29, 15, 14, 5, 1, 4, 5, 1, 26, 1, 13, 28, 6, 27, 2, 1, 0, 0, 1, 1, 2, 0, 0, 0),
    50: (3, 7, 49, 24, 29, 17, 59, 41, 26, 8, 10, 6, 2, 5, 7, 2, 30, 3, 13, 27, 5, 23, 2, 1, 0, 0, 1, 1, 2, 0, 0, 0),
    60: (14, 33, 89, 36, 36, 20, 55, 21, 18, 4, 7, 5, 2, 5, 7, 4, 26, 5, 11, 24, 4, 18, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0),
    70: (48, 79, 118, 41, 33, 17, 36, 9, 9, 2, 3, 2, 1, 3, 4, 8, 18, 7, 8, 20, 4, 13, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0),
    80: (128, 127, 118, 35, 26, 8, 13, 3, 2, 1, 0, 0, 0, 2, 1, 8, 7, 8, 5, 11, 2, 6, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0),
    90: (262, 153, 80, 19, 13, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 1, 2, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0),
}

# Visual tokens that SparseVLM keeps after layers 2, 6 and 15, by the average that names the configuration.
SPARSEVLM_LAYERS = (3, 7, 16)
SPARSEVLM_KEPT: dict[str, dict[int, tuple[int, int, int]]] = {
    "2.0": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
    "1.5": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
}


@dataclass(frozen=True)
class Published:
    """A method with its parameters and a schedule for the decoder it was published for.

    ``layers``: that decoder's depth, or None if the layer is meant as it stands in any model.
    """

    method: str
    schedule: Schedule
    layers: int | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    def about(self) -> str:
        """One line for listings."""
        named = ", ".join([self.method, *(f"{key} {value}" for key, value in self.parameters.items())])
        if self.layers is None:
            return f"{named}: {self.schedule.text()}"
        ratios = self.schedule.keep_ratio(self.layers)
        mean = sum(ratios) / len(ratios)
        return f"{named}: {min(ratios):.2f} at the end, {mean:.2f} on average over {self.layers} layers"

    def make_method(self) -> Method:
        return make_method(self.method, self.parameters)

    def for_layers(self, layers: int) -> Schedule:
        """The schedule for a decoder of ``layers`` layers, stretched if it was published for another depth."""
        if self.layers is None or self.layers == layers:
            return self.schedule
        ratios = self.schedule.keep_ratio(self.layers)
        return Ratios([ratios[0], *(ratios[layer * self.layers // layers] for layer in range(1, layers))])


def fitprune_counts(deleted: Sequence[int], tokens: int = LLAVA_TOKENS) -> list[int]:
    """Visual tokens that enter each layer when ``deleted[l]`` go between layers l and l + 1."""
    counts = [tokens]
    for gone in deleted[:-1]:
        counts.append(counts[-1] - gone)
    return counts


def sparsevlm_counts(kept: Sequence[int], *, recycle: bool, tokens: int = LLAVA_TOKENS) -> list[int]:
    """Visual tokens after each sparse layer, with the clusters that recycling adds."""
    from vispco.pruning.methods.sparsevlm import clusters_of

    counts = []
    for count in kept:
        total = count + (clusters_of(tokens - count) if recycle else 0)
        counts.append(total)
        tokens = total
    return counts


def _shares(counts: Sequence[int]) -> list[float]:
    return [count / LLAVA_TOKENS for count in counts]


PUBLISHED: dict[str, Published] = {
    "fastv:k2-r50": Published("fastv", Step(layer=2, keep=0.5)),
    "fastv:k2-r75": Published("fastv", Step(layer=2, keep=0.25)),
    "fastv:k3-r50": Published("fastv", Step(layer=3, keep=0.5)),
    **{
        f"fitprune:{share}": Published("fitprune", Ratios(_shares(fitprune_counts(deleted))), LLAVA_LAYERS)
        for share, deleted in FITPRUNE_DELETED.items()
    },
    **{
        f"sparsevlm:{name}": Published("sparsevlm", MultiStep(SPARSEVLM_LAYERS, _shares(kept)), LLAVA_LAYERS)
        for name, kept in SPARSEVLM_KEPT["2.0"].items()
    },
    **{
        f"sparsevlm-1.5:{name}": Published(
            "sparsevlm",
            MultiStep(SPARSEVLM_LAYERS, _shares(sparsevlm_counts(kept, recycle=True))),
            LLAVA_LAYERS,
            {"release": "1.5", "recycle": True},
        )
        for name, kept in SPARSEVLM_KEPT["1.5"].items()
    },
    "pyramiddrop:8-16-24": Published("pyramiddrop", MultiStep((8, 16, 24), (0.5, 0.25, 0.125)), LLAVA_LAYERS),
    "dart:128": Published("dart", Step(layer=2, keep=132 / LLAVA_TOKENS)),
    "vtw:16": Published("stride", Step(layer=16, keep=0.0), LLAVA_LAYERS),
    "divprune:0.098": Published("divprune", Step(layer=0, keep=0.098)),
    **{
        f"visionzip:{dominant + contextual}": Published(
            "visionzip",
            Step(layer=0, keep=(dominant + contextual) / LLAVA_TOKENS),
            parameters={"contextual": contextual / (dominant + contextual)},
        )
        for dominant, contextual in ((54, 10), (191, 30))
    },
    "vispruner:128": Published("vispruner", Step(layer=0, keep=128 / LLAVA_TOKENS)),
    **{f"hiprune:{kept}": Published("hiprune", Step(layer=0, keep=kept / LLAVA_TOKENS)) for kept in (64, 128, 192)},
    **{f"cdpruner:{kept}": Published("cdpruner", Step(layer=0, keep=kept / LLAVA_TOKENS)) for kept in (64, 192)},
    "scope:64": Published("scope", Step(layer=0, keep=64 / LLAVA_TOKENS)),
    "idpruner:0.25": Published("idpruner", Step(layer=0, keep=0.25)),
    "evs:0.25": Published("evs", Step(layer=0, keep=0.25)),
    "vidcom2:0.25": Published("vidcom2", Step(layer=0, keep=0.25)),
    "prumerge:14.4x": Published("prumerge", Step(layer=0, keep=1 / 14.4)),
}


def named_schedule(text: str, layers: int, config: Any = None) -> tuple[Schedule, Method | None]:
    """A schedule, and the method that belongs to it, from what a user types.

    A file's is held against the model: its depth, and its ``config`` where there is one.

    ``text`` is a published name (``sparsevlm:192``), the path of a file written by ``vispco export``
    (``best.json``), or a schedule's text, which belongs to no method.

    Raises:
        ScheduleError: none of these, or a file that was made for another model.
    """
    if text in PUBLISHED:
        return PUBLISHED[text].for_layers(layers), PUBLISHED[text].make_method()
    if text.endswith(".json"):
        found = read_schedule_file(text)
        found.check_model(layers, config)
        return found, found.make_method()
    if ":" in text and "(" not in text:
        raise ScheduleError(f"no published configuration {text!r}; {suggest(text, list(PUBLISHED))}")
    return parse_schedule(text), None
