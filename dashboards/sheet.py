"""One experiment's part of a page: headings, places for figures, what is folded. Pieces of HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

import plotly.graph_objects as go


@dataclass
class Sheet:
    """``prefix`` begins all ids, ``level`` is that of the headings; ``figures`` are those that have a place, by id."""

    prefix: str = ""
    level: int = 2
    figures: dict[str, go.Figure] = field(default_factory=dict)

    def id(self, name: str) -> str:
        return f"{self.prefix}{name}"

    def heading(self, text: str) -> str:
        return f"<h{self.level}>{escape(text)}</h{self.level}>"

    def folded(self, title: str, *parts: str) -> str:
        """A section that opens on a click; "" without content."""
        body = "".join(parts)
        heading = f"<h{self.level}>{escape(title)}</h{self.level}>"
        return f"<details><summary>{heading}</summary>{body}</details>" if body else ""

    def one(self, key: str, figure: go.Figure) -> str:
        """A place for a figure."""
        self.figures[self.id(key)] = figure
        return self._place(key, key, figure.layout.height)

    def choice(self, key: str, label: str, shown: Mapping[str, go.Figure]) -> str:
        """A place for one of several figures, and what chooses between them."""
        for number, figure in enumerate(shown.values()):
            self.figures[self.id(f"{key}-{number}")] = figure
        options = "".join(
            f'<option value="{self.id(f"{key}-{n}")}">{escape(name)}</option>' for n, name in enumerate(shown)
        )
        chooser = (
            f'<p class="choice picker"><label>{escape(label)} <select data-for="{self.id(key)}" dir="auto">{options}'
            "</select></label></p>"
        )
        place = self._place(key, f"{key}-0", max(figure.layout.height for figure in shown.values()))
        return (chooser if len(shown) > 1 else "") + place

    def _place(self, key: str, figure: str, height: int) -> str:
        name = self.id(key)
        return f'<div id="{name}" class="figure" data-figure="{self.id(figure)}" style="height:{height}px"></div>'


def pair(*parts: str) -> str:
    """Side by side where there is room."""
    return f'<div class="pair">{"".join(parts)}</div>'
