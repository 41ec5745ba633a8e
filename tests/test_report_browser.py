"""The report in a real browser: opened from disk with the network off, read, clicked, printed.

Skipped where Chromium, its driver or selenium is missing (Debian: ``apt-get install chromium chromium-driver``).
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from vispco.dashboards.report import write_report

from report_data import HOSTILE, RIGHT_TO_LEFT, fill
from vispco.analysis.comparison import Comparison
from vispco.storage.store import Store

WINDOW = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
PATIENCE = 120  # seconds; a busy machine is slow, not broken
EXPERIMENT = HOSTILE.replace("/", "").strip()
TASKS = [HOSTILE, RIGHT_TO_LEFT, "plain"]
ENTRIES = {"grid": ("grid", None, 30, 0.0), "lagrangian": ("lagrangian", 2, 6, 0.05), "tpe": ("tpe", 1, 12, -0.02)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    found = {
        name: next((path for one in names if (path := shutil.which(one))), None)
        for name, names in {
            "browser": ("chromium", "chromium-browser", "google-chrome"),
            "driver": ("chromedriver",),
        }.items()
    }
    for name, path in found.items():
        if path is None:
            pytest.skip(f"no {name} of Chromium in PATH: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found["browser"]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(found["driver"]))
    driver.set_script_timeout(PATIENCE)
    driver.execute_cdp_cmd("Network.enable", {})
    off = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", off)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    folder = tmp_path_factory.mktemp("browser")
    store = Store(f"sqlite:///{folder}/a.db")
    fill(store, EXPERIMENT, entries=ENTRIES, tasks=TASKS, note=HOSTILE, further={"kv_bytes": 2048.0})
    write_report(store, EXPERIMENT, folder / "r.html")
    return Comparison(store, EXPERIMENT), folder / "r.html"


@pytest.fixture
def page(browser: Any, made: tuple[Comparison, Path]) -> Any:
    """The page, light and wide, with all its figures drawn; afterwards nothing was complained of."""
    show(browser, made[1], width=1280, scheme="light")
    yield browser
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.broken") is None


def show(browser: Any, path: Path, *, width: int, scheme: str, height: int = 30_000) -> None:
    """Opened with nothing folded, in a window so high that all figures are near and so drawn."""
    browser.get("about:blank")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [media(scheme)]})
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    browser.execute_script("try { localStorage.clear(); } catch { }")
    wait(browser, "return document.documentElement.dataset.interactive === 'true'")
    browser.execute_script("for (const folded of document.querySelectorAll('details')) folded.open = true;")
    wait(browser, "return [...document.querySelectorAll('.figure')].every((place) => place.dataset.drawn)")


def media(scheme: str) -> dict[str, str]:
    return {"name": "prefers-color-scheme", "value": scheme}


def wait(browser: Any, script: str) -> Any:
    limit = time.monotonic() + PATIENCE
    while not (found := browser.execute_script(script)):
        assert time.monotonic() < limit, script
        time.sleep(0.02)
    return found


def select(browser: Any, place: str, value: str) -> None:
    """Choose one of a place's figures, and wait until it is drawn."""
    browser.execute_script(
        "const s = document.querySelector(`select[data-for='${arguments[0]}']`); s.value = arguments[1];"
        "s.dispatchEvent(new Event('change'));",
        place,
        value,
    )
    wait(browser, f"return document.getElementById('{place}').dataset.drawn === '{value}'")


def test_every_figure_is_drawn(page: Any) -> None:
    places = page.execute_script("return [...document.querySelectorAll('.figure')].map((p) => p.id)")
    assert {
        "overlay",
        "objectives",
        "costs",
        "choices",
        "task",
        "map",
        "path",
        "layers-0",
        "seeds-0",
        "anytime",
    } <= set(places)
    for place in places:
        drawn = page.execute_script(
            "const p = document.getElementById(arguments[0]);"
            "return p.querySelectorAll('.main-svg path, .main-svg image').length",
            place,
        )
        assert drawn > 5, place
    for menu in page.execute_script("return [...document.querySelectorAll('select')].map((s) => s.dataset.for)"):
        values = page.execute_script(
            "return [...document.querySelector(`select[data-for='${arguments[0]}']`).options].map((o) => o.value)", menu
        )
        for value in values:
            select(page, menu, value)


def test_numbers_equal_the_json(page: Any, made: tuple[Comparison, Path]) -> None:
    told = json.loads(json.dumps(made[0].to_dict()))
    shown = page.execute_script("return JSON.parse(document.getElementById('comparison').textContent)")
    assert shown == told
    traces = page.execute_script(
        "return document.getElementById('overlay').data.map((t) => ({name: t.name, mode: t.mode, y: [...t.y]}))"
    )
    grid = next(trace for trace in traces if trace["name"] == "grid" and "markers" in trace["mode"])
    front = told["searches"][0]["front"]
    assert grid["y"] == pytest.approx([100 * point["accuracy_held_out"] for point in front], abs=1e-3)
    text = page.find_element("css selector", "main").text
    for search in told["searches"]:
        assert f"{100 * search['budget_score']:.1f} %" in text
    row = next(row for row in told["by_budget"] if row["budget"] == 0.52)
    assert f"{100 * row['chosen']['grid']['accuracy_held_out']:.1f} %" in text


def test_the_slider_names_what_compare_chooses(page: Any, made: tuple[Comparison, Path]) -> None:
    told = made[0].to_dict()
    for row in told["by_budget"]:
        page.execute_script(
            "const s = document.getElementById('budget'); s.value = arguments[0]; s.dispatchEvent(new Event('input'));",
            row["budget"],
        )
        rows = {
            found[0]: found[1:]
            for found in page.execute_script(
                "return [...document.querySelectorAll('#chosen tbody tr')].map("
                "(r) => [...[...r.cells].map((c) => c.textContent), r.dataset.trial])"
            )
        }
        assert list(rows) == list(ENTRIES)
        for entry, (_, seeds, _, _) in ENTRIES.items():
            runs = [chosen for name, chosen in row["chosen"].items() if name.partition("@")[0] == entry]
            accuracies = [chosen["accuracy_held_out"] for chosen in runs]
            assert rows[entry][0] == f"{100 * sum(accuracies) / len(runs):.1f} %"
            assert rows[entry][2] == f"{100 * sum(chosen['flops_ratio'] for chosen in runs) / len(runs):.1f} %"
            if seeds == 2:
                spread = f"{100 * min(accuracies):.1f} % to {100 * max(accuracies):.1f} % over seeds"
                assert [rows[entry][1], rows[entry][3]] == [spread, "mean of 2 seeds"]
            else:
                assert rows[entry][3:] == [runs[0]["schedule"], str(runs[0]["trial"])]
        command = page.find_element("id", "export").text
        assert command.startswith(f"vispco export --budget {row['budget']:g} -o schedule.json --storage sqlite:///")
        line = page.execute_script("return document.getElementById('overlay').layout.shapes.at(-1).x0")
        assert line == pytest.approx(100 * row["budget"])


def test_below_the_floor_there_is_nothing_to_copy(page: Any) -> None:
    page.execute_script(
        "const s = document.getElementById('budget'); s.value = s.min; s.dispatchEvent(new Event('input'));"
    )
    assert page.find_element("id", "export-note").text.startswith("No schedule fits this budget")
    assert not page.find_element("id", "export").is_displayed()
    (row,) = page.find_elements("css selector", "#chosen tbody tr")  # all miss it, which is one thing to say
    assert row.get_attribute("class") == "missed"
    assert all(name in row.text for name in ENTRIES)


def test_digits_are_those_of_the_command_line(page: Any) -> None:
    """Ties too: JavaScript's own rounding would give 6.3 for 6.25."""
    numbers = [k / 512 for k in range(513)] + [k / 480 for k in range(481)]
    script = page.execute_script("return [...document.scripts].find((s) => s.text.includes('function fixed')).text")
    found = re.search(r"function fixed.*?\n  }\n", script, flags=re.DOTALL)
    assert found is not None
    shown = page.execute_script(f"{found[0]} return arguments[0].map((v) => [fixed(100 * v, 1), fixed(v, 3)])", numbers)
    assert shown == [[f"{100 * number:.1f}", f"{number:.3f}"] for number in numbers]


def test_hover_shows_the_schedule(page: Any, made: tuple[Comparison, Path]) -> None:
    point = made[0].to_dict()["searches"][0]["front"][1]
    page.execute_script(
        "const p = document.getElementById('overlay');"
        "p.scrollIntoView();"
        "const n = p.data.findIndex((t) => t.name === 'grid' && (t.mode ?? '').includes('markers'));"
        "Plotly.Fx.hover(p, [{curveNumber: n, pointNumber: 1}]);"
    )
    text = wait(page, "return document.querySelector('#overlay .hoverlayer').textContent")
    assert point["schedule"] in text
    assert f"{100 * point['accuracy_held_out']:.1f} %" in text


def test_pointing_at_a_search_shows_its_band(page: Any, made: tuple[Comparison, Path]) -> None:
    point = made[0].to_dict()["searches"][0]["front"][1]
    shown = "return document.getElementById('overlay').data.filter((t) => t.meta?.band && t.opacity > 0)"
    assert page.execute_script(f"{shown}.length") == 0
    x, y = page.execute_script(
        "const p = document.getElementById('overlay'), box = p.getBoundingClientRect();"
        "const {xaxis, yaxis} = p._fullLayout;"
        "return [box.left + xaxis._offset + xaxis.d2p(arguments[0]),"
        " box.top + yaxis._offset + yaxis.d2p(arguments[1])];",
        100 * point["flops_ratio"],
        100 * point["accuracy_held_out"],
    )
    for place, bands in (((x, y), ["grid"]), ((x, 5), [])):
        page.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": place[0], "y": place[1]})
        wait(page, f"{shown}.map((t) => t.meta.band).join() === {','.join(bands)!r}")


def test_the_legend_hides_a_search_and_shows_the_dominated(page: Any) -> None:
    def visible(name: str) -> list[Any]:
        return page.execute_script(
            "return document.getElementById('overlay').data.filter((t) => t.legendgroup === arguments[0])"
            ".map((t) => t.visible ?? true)",
            name,
        )

    assert set(map(str, visible("dominated"))) == {"legendonly"}
    for name, label in (("dominated", "dominated (search split)"), ("grid", "grid")):
        before = visible(name)
        page.execute_script("document.getElementById('overlay').scrollIntoView()")
        items = page.find_elements("css selector", "#overlay .legend .traces")
        (item,) = (i for i in items if i.find_element("css selector", ".legendtext").text == label)
        item.find_element("css selector", ".legendtoggle").click()
        limit = time.monotonic() + PATIENCE
        while visible(name) == before:
            assert time.monotonic() < limit
            time.sleep(0.05)
    assert set(visible("dominated")) == {True}
    assert set(map(str, visible("grid"))) == {"legendonly"}


def test_light_and_dark(page: Any, made: tuple[Comparison, Path]) -> None:
    def colors() -> tuple[str, str]:
        ground = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        return ground, page.execute_script("return document.getElementById('overlay').layout.font.color")

    def lowest() -> list[str]:
        """What nothing kept looks like in the heat maps."""
        maps = "[...document.querySelectorAll('.figure')].flatMap((p) => p.data.filter((t) => t.type === 'heatmap'))"
        return page.execute_script(f"return {maps}.map((t) => t.colorscale[t.zmin < 0 ? 1 : 0][1])")

    light, button = colors(), page.find_element("id", "theme")
    assert set(lowest()) == {"#f7f4ec"}
    assert button.text == "Dark"
    button.click()
    wait(page, "return document.documentElement.dataset.theme === 'dark'")
    limit = time.monotonic() + PATIENCE
    while colors()[1] == light[1]:
        assert time.monotonic() < limit
        time.sleep(0.05)
    dark = colors()
    assert dark[0] != light[0]
    wait(page, "return document.getElementById('map').data[0].colorscale[0][1] === '#22282c'")
    assert set(lowest()) == {"#22282c"}
    assert button.text == "Light"
    show(page, made[1], width=1280, scheme="light")  # which forgets the choice
    page.execute_script("localStorage.clear()")
    show(page, made[1], width=1280, scheme="dark")
    assert colors() == dark


def test_hostile_names_are_text(page: Any) -> None:
    text = page.find_element("css selector", "h1").text
    assert text == " ".join(EXPERIMENT.split())
    assert page.execute_script("return document.images.length") == 0
    select(page, "task", "task-0")
    title = page.execute_script("return document.querySelector('#task .gtitle').textContent")
    assert title.startswith("</script><script>window.broken=1</script><img src=x")
    select(page, "task", "task-1")
    title = page.execute_script("return document.querySelector('#task .gtitle').textContent")
    assert "\u05e9\u05dc\u05d5\u05dd <b>" in title
    options = page.execute_script(
        "return [...document.querySelector(`select[data-for='task']`).options].map((o) => o.text)"
    )
    assert options[0].startswith("</script><script>")
    assert page.execute_script("return document.querySelectorAll('body script:not([type])').length") == 1
    assert (
        page.execute_script("return document.querySelectorAll('main script, main iframe, main [onerror]').length") == 0
    )


@pytest.mark.parametrize("width", [1280, 768, 390])
def test_nothing_is_wider_than_the_window(browser: Any, made: tuple[Comparison, Path], width: int) -> None:
    show(browser, made[1], width=width, scheme="light")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    cut = browser.execute_script(
        "return [...document.querySelectorAll('.figure .main-svg')].filter("
        "(s) => s.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert cut == 0
    titles = browser.execute_script(
        "return [...document.querySelectorAll('.xtitle, .ytitle, .gtitle')].filter((t) => {"
        "const own = t.getBoundingClientRect(), place = t.closest('.figure').getBoundingClientRect();"
        "return own.left < place.left - 1 || own.right > place.right + 1 || own.top < place.top - 1 ||"
        " own.bottom > place.bottom + 1; }).map((t) => t.textContent)"
    )
    assert titles == []
    hidden = browser.execute_script(
        "return [...document.querySelectorAll('td')].filter((cell) => {"
        "const own = cell.getBoundingClientRect(); return own.width < 10 || own.right > innerWidth + 1; }).length"
    )
    assert hidden == 0 or width > 620  # a wide table scrolls by itself; on a phone its rows become blocks


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_serious_finding_of_axe(browser: Any, made: tuple[Comparison, Path], width: int, scheme: str) -> None:
    show(browser, made[1], width=width, scheme=scheme)
    assert_accessible(browser)


def assert_accessible(browser: Any) -> None:
    found = find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("axe is not installed: pip install --no-deps axe-playwright-python")
    axe = Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")
    browser.execute_cdp_cmd("Runtime.evaluate", {"expression": axe})  # which a content policy does not forbid
    told = browser.execute_async_script(
        "const done = arguments[0]; axe.run().then((found) => done(found.violations.map("
        "(v) => [v.impact, v.id, v.nodes.slice(0, 3).map((n) => n.html)])), (error) => done([['error', `${error}`]]));"
    )
    assert [one for one in told if one[0] not in ("minor", "moderate")] == []


def test_the_page_is_small_and_ready_before_its_figures(browser: Any, made: tuple[Comparison, Path]) -> None:
    """The time itself is of a machine (docs/reading.md has one); here is what makes it short."""
    assert made[1].stat().st_size < 5_000_000
    show(browser, made[1], width=1280, scheme="light", height=30_000)
    marks = browser.execute_script(
        "return performance.getEntriesByType('mark').map((mark) => [mark.name, mark.startTime])"
    )
    assert marks[0][0] == "interactive"
    assert all(name.startswith("drawn ") for name, _ in marks[1:])
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**WINDOW, "height": 900})
    browser.get(made[1].as_uri())
    wait(browser, "return document.getElementById('overlay').dataset.drawn")
    far = browser.execute_script("return document.getElementById('map').dataset.drawn ?? null")
    assert far is None  # folded away: it costs nothing until it is opened


def test_print_is_light_and_whole(browser: Any, made: tuple[Comparison, Path], tmp_path: Path) -> None:
    show(browser, made[1], width=1280, scheme="dark")
    seen = (
        "addEventListener('beforeprint', () => { window.seen = {"
        "ground: getComputedStyle(document.body).backgroundColor,"
        "width: Math.max(...[...document.querySelectorAll('.figure .main-svg')].map((s) => s.clientWidth)) }; });"
    )
    browser.execute_script(seen)
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert printed.startswith(b"%PDF")
    assert browser.execute_script("return window.seen") == {"ground": "rgb(255, 255, 255)", "width": 680}
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(22, 25, 27)"
    if not shutil.which("pdftotext"):
        pytest.skip("no pdftotext in PATH: apt-get install poppler-utils")
    (tmp_path / "r.pdf").write_bytes(printed)
    text = subprocess.run(["pdftotext", tmp_path / "r.pdf", "-"], capture_output=True, text=True, check=True).stdout
    assert "Provenance" in text
