"""Pictures with the patches that survive: one panel per layer at which tokens are dropped."""

from __future__ import annotations

from PIL import Image, ImageDraw

from vispco.survivors import Survivors

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
