"""Pictures with the patches that survive: one panel per layer at which tokens are dropped."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image, ImageDraw

from vispco.analysis.comparison import Comparison
from vispco.analysis.headline import answer
from vispco.exporting import export_schedule
from vispco.problem import Problem
from vispco.pruning.methods.base import make_method
from vispco.pruning.schedules import parse_schedule
from vispco.survivors import Survivors, survivors

SIDE, GAP, TITLE = 224, 12, 22
DROPPED = (110, 110, 110)
FADE = 0.82


def draw_survivors(found: Survivors, caption: str = "") -> Image.Image:
    """A row of panels per picture; dropped patches are greyed out."""
    layers, pictures = list(found.kept), found.pictures
    width = GAP + len(layers) * (SIDE + GAP)
    heights = [round(SIDE * picture.height / picture.width) for picture in pictures]
    sheet = Image.new("RGB", (width, GAP + TITLE * bool(caption) + sum(h + TITLE + GAP for h in heights)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), caption, fill="black")
    top = GAP + TITLE * bool(caption)
    for number, picture in enumerate(pictures):
        for column, layer in enumerate(layers):
            kept = found.kept[layer][number]
            panel = picture.convert("RGB").resize((SIDE, heights[number]))
            mask = Image.fromarray((~kept).astype("uint8") * round(255 * FADE)).resize(
                panel.size, Image.Resampling.NEAREST
            )
            panel.paste(Image.new("RGB", panel.size, DROPPED), mask=mask)
            left = GAP + column * (SIDE + GAP)
            draw.text((left, top), f"layer {layer}: {int(kept.sum())} of {kept.size} tokens", fill="black")
            sheet.paste(panel, (left, top + TITLE))
            draw.rectangle(
                (left, top + TITLE, left + SIDE - 1, top + TITLE + panel.height - 1), outline=(150, 150, 150)
            )
        top += heights[number] + TITLE + GAP
    return sheet


def sample_pictures(comparison: Comparison, number: int) -> list[dict[str, str]]:
    """``png`` (base64) and ``caption`` of the first held-out samples with a picture, under the schedule that would be
    exported near half the compute. Loads and runs the model.

    Raises:
        ConfigError: no schedule can be exported for that budget.
        ModelError: the model cannot be loaded.
    """
    budget = answer(comparison)["budget"]
    exported = export_schedule(comparison, budget)
    problem = Problem.from_text(comparison.stored.spec_text, f"study stored for {comparison.experiment!r}")
    method = make_method(exported["method"], exported["method_parameters"])
    schedule = parse_schedule(exported["schedule"])
    found: list[dict[str, Any]] = []
    for task in problem.tasks:
        # One sample of each group: questions about one picture look alike.
        samples = list({s.group_id: s for s in reversed(task.samples("held_out")) if s.images}.values())[::-1]
        for sample in samples[: -(-number // len(problem.tasks))]:
            shown = survivors(problem, sample, method, schedule)
            data = io.BytesIO()
            draw_survivors(shown).save(data, "PNG", optimize=True)
            caption = f"{method.name}, {schedule.text()}: {sample.question} {shown.answer}"
            found.append({"png": base64.b64encode(data.getvalue()).decode("ascii"), "caption": caption})
    return found[:number]
