"""``vispco plot``: what is in the figures; files are what their suffix says, at the size that was asked for."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Cli

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'vispco[plot]'")

from PIL import Image
from vispco.dashboards import matplotlib_figures

from report_data import fill
from vispco.analysis.attainment import attainment_bands
from vispco.analysis.comparison import Comparison
from vispco.cli.plot import FIGURES, write_plot
from vispco.errors import ConfigError
from vispco.storage.store import Store

ENTRIES = {
    "_grid": ("grid", None, 30, 0.0),
    "lagrangian": ("lagrangian", 10, 5, 0.05),
    "a.very-long_name." * 3: ("tpe", 1, 8, 0.0),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(f"sqlite:///{tmp_path_factory.mktemp('plot')}/a.db")
    fill(made, "$x^$ \\frac", entries=ENTRIES)
    return made


@pytest.fixture(scope="module")
def told(store: Store) -> dict[str, Any]:
    return Comparison(store, "$x^$ \\frac").to_dict()


@pytest.mark.parametrize("what", FIGURES)
def test_every_figure_fits_a_column(store: Store, what: str, tmp_path: Path) -> None:
    """Nothing is cut: drawn with room around it, the figure has ink at the same places."""
    written = write_plot(store, "$x^$ \\frac", tmp_path / "f.png", what)
    with Image.open(written) as picture:
        assert picture.width == round(3.3 * matplotlib_figures.DPI)
        assert picture.height < 1.3 * picture.width
        pixels = np.asarray(picture.convert("L"))
    assert (pixels < 128).sum() > 1000
    edges = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
    assert min(int(edge.min()) for edge in edges) > 200, "ink at the edge of the picture"


def test_files_are_what_their_suffix_says(store: Store, tmp_path: Path) -> None:
    first = {s: write_plot(store, "$x^$ \\frac", tmp_path / f"a{s}").read_bytes() for s in matplotlib_figures.FORMATS}
    again = {s: write_plot(store, "$x^$ \\frac", tmp_path / f"b{s}").read_bytes() for s in matplotlib_figures.FORMATS}
    assert first == again, "equal records, equal files"
    assert first[".pdf"].startswith(b"%PDF")
    assert b"/Type3" not in first[".pdf"], "fonts that journals refuse"
    (box,) = re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+)", first[".pdf"])
    assert float(box) == pytest.approx(3.3 * 72, abs=0.1)
    assert b"<svg" in first[".svg"][:600]
    assert first[".png"].startswith(b"\x89PNG")


def test_lines_are_the_numbers_of_compare(store: Store, told: dict[str, Any]) -> None:
    comparison = Comparison(store, "$x^$ \\frac")
    for split, key in (("held_out", "accuracy_held_out"), ("search", "accuracy")):
        figure = matplotlib_figures.front(told, comparison.points(), attainment_bands(comparison), split=split)
        lines = [list(line.get_ydata()) for line in figure.axes[0].get_lines()]
        for search in (told["searches"][0], told["searches"][-1]):
            assert [point[key] for point in search["front"]] in lines
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert names[:2] == ["_grid", "lagrangian (10 seeds)"]
        assert names[2].startswith("a.very-long_name.a.very-long")
    figure = matplotlib_figures.choices(told)
    chosen = [[row["chosen"]["_grid"]["accuracy_held_out"] for row in told["by_budget"]]]
    assert chosen[0] in [list(line.get_ydata()) for line in figure.axes[0].get_lines()]
    missed = copy.deepcopy(told)
    missed["by_budget"][0]["chosen"]["_grid"]["missed"] = True
    lines = matplotlib_figures.choices(missed).axes[0].get_lines()
    assert [list(line.get_ydata()) for line in lines if line.get_markerfacecolor() == "w"] == [chosen[0][:1]]
    image = matplotlib_figures.schedules(told["searches"][0]).axes[0].get_images()[0].get_array()
    assert image.tolist() == [point["keep_ratio"] for point in told["searches"][0]["front"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": "fronts"}, "did you mean 'front'"),
        ({"split": "heldout"}, "did you mean 'held_out'"),
        ({"what": "schedules", "search": "_gird"}, "did you mean '_grid'"),
        ({"what": "trajectory", "search": "_grid"}, "no search '_grid' with a trajectory"),
        ({"output": "f.jpg"}, "end it with .pdf, .svg, .png"),
        ({"output": "nowhere/f.pdf"}, "there is no folder"),
    ],
)
def test_mistakes_say_what_to_do(store: Store, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    output = tmp_path / options.pop("output", "f.pdf")
    with pytest.raises(ConfigError, match=re.escape(message)):
        write_plot(store, "$x^$ \\frac", output, **options)


def test_the_command(cli: Cli, store: Store, tmp_path: Path) -> None:
    arguments = ["plot", "$x^$ \\frac", "-o", tmp_path / "f.svg", "--what", "cost", "--width", "6.9"]
    code, out, _ = cli(*arguments, "--storage", store.url)
    assert code == 0
    assert out.strip() == str(tmp_path / "f.svg")
    assert json.loads(re.findall(r'width="([\d.]+)pt"', (tmp_path / "f.svg").read_text())[0]) == pytest.approx(496.8)


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "vispco.dashboards.matplotlib_figures")
    monkeypatch.delattr("vispco.dashboards.matplotlib_figures")
    with pytest.raises(ConfigError, match=r"pip install 'vispco\[plot\]'"):
        write_plot(store, "$x^$ \\frac", Path("f.pdf"))
