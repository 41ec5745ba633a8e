"""optuna-dashboard on our database in a real browser: what each study's pages show.

Skipped where Chromium, its driver or selenium is missing (Debian: ``apt-get install chromium chromium-driver``).
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from typing import Any

import optuna
import pytest
from optuna.trial import create_trial

from report_data import BUDGETS, HOSTILE, RIGHT_TO_LEFT, fill
from test_dashboard import get, serving
from vispco.analysis.comparison import Comparison
from vispco.storage.store import Store

PATIENCE = 120  # seconds; a busy machine is slow, not broken
NAMES = {"plain": "made", "hostile": HOSTILE.replace("/", "").strip(), "foreign": f"{RIGHT_TO_LEFT} {'long ' * 20}"}
INFEASIBLE = "#cccccc"
TRACES = (
    "return [...document.getElementById(arguments[0])?.data ?? []].map((t) => ({name: t.name, x: [...(t.x ?? [])],"
    " color: typeof t.marker?.color === 'string' ? t.marker.color : null}))"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    paths = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    found, driver_path = next(filter(None, paths), None), shutil.which("chromedriver")
    if found is None or driver_path is None:
        pytest.skip("no Chromium with its driver in PATH: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1280,1600")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(f"sqlite:///{tmp_path_factory.mktemp('dashboard')}/a.db")
    fill(made, NAMES["plain"])
    entries = {"grid": ("grid", None, 12, 0.0)}
    for name in ("hostile", "foreign"):
        fill(made, NAMES[name], entries=entries, tasks=[HOSTILE, RIGHT_TO_LEFT], note=HOSTILE)
    study = optuna.create_study(study_name="theirs", storage=made.optuna, directions=["maximize", "minimize"])
    study.set_metric_names(["score", "memory"])
    for number in range(5):
        study.add_trial(create_trial(values=[number, number], constraints={"limit": number - 2.5}))
    return made


@pytest.fixture(scope="module")
def base(store: Store) -> Iterator[str]:
    with serving(store.url) as found:
        yield found


@pytest.fixture(scope="module")
def ids(base: str) -> dict[str, int]:
    return {one["study_name"]: one["study_id"] for one in get(f"{base}/api/studies")["study_summaries"]}


@pytest.fixture
def quiet(browser: Any) -> Iterator[Any]:
    """Afterwards no page complained, and no name had run as a script."""
    yield browser
    # A study without parameters has no importances, which the page asks for all the same.
    told = [entry for entry in browser.get_log("browser") if "param_importances" not in entry["message"]]
    assert told == []
    assert browser.execute_script("return window.broken") is None


def wait(browser: Any, script: str, *arguments: Any) -> Any:
    limit = time.monotonic() + PATIENCE
    while not (found := browser.execute_script(script, *arguments)):
        assert time.monotonic() < limit, (script, arguments)
        time.sleep(0.05)
    return found


def open_study(browser: Any, base: str, study: int, page: str = "") -> str:
    """All text of a study's page, once its figures, or its note, are drawn."""
    browser.get(f"{base}/dashboard/studies/{study}{page}")
    if page == "":
        wait(browser, TRACES, "graph-pareto-front")
    elif page == "/note":
        wait(browser, "return document.querySelector('table')")
    return str(browser.find_element("css selector", "body").text)


@pytest.mark.parametrize("name", ["made/grid", "made/lagrangian", "made/tpe", "made: comparison"])
def test_a_study_shows_its_front_the_overlay_and_what_is_infeasible(
    quiet: Any, base: str, ids: dict[str, int], store: Store, name: str
) -> None:
    text = open_study(quiet, base, ids[name])
    chosen = quiet.execute_script("return [...document.querySelectorAll('[role=combobox]')].map((e) => e.textContent)")
    assert chosen[:2] == ["accuracy", "flops_ratio"]  # objectives of the Pareto plot
    trials = get(f"{base}/api/studies/{ids[name]}")["trials"]
    over = [trial["values"][0] for trial in trials if trial["values"][1] > max(BUDGETS)]
    # The plot is there before its trials are.
    counted = "(document.getElementById('graph-pareto-front')?.data ?? []).reduce((n, t) => n + (t.x?.length ?? 0), 0)"
    wait(quiet, f"return {counted} === arguments[0]", len(trials))
    traces = quiet.execute_script(TRACES, "graph-pareto-front")
    (grey,) = (trace["x"] for trace in traces if trace["color"] == INFEASIBLE)
    assert over
    assert sorted(grey) == sorted(over)
    assert sum(len(trace["x"]) for trace in traces) == len(trials)
    place = f"user-defined-plot:{'comparison-' if name == 'made: comparison' else ''}overlay-held_out"
    drawn = wait(quiet, TRACES, place)
    # Our style sheet still finds its elements: the overlay is first and wide, importances where they mean something.
    boxes = quiet.execute_script(
        "return [arguments[0], 'graph-pareto-front', 'graph-hyperparameter-importances'].map((id) => {"
        "const box = document.getElementById(id)?.getBoundingClientRect(); return box && [box.top, box.width]; })",
        place,
    )
    assert boxes[0][0] < boxes[1][0]
    assert boxes[0][1] > 900
    assert (boxes[2] is None or boxes[2][1] == 0) == (name == "made: comparison")
    told = Comparison(store, "made").to_dict()
    for search in told["searches"]:
        lines = [trace["x"] for trace in drawn if trace["name"] == search["name"]]
        assert pytest.approx([100 * point["flops_ratio"] for point in search["front"]], abs=1e-3) in lines
    held = quiet.execute_script(
        "const place = document.getElementById(arguments[0]), p = place.getBoundingClientRect();"
        "return [...place.querySelectorAll('.legend .traces')]"
        ".map((e) => e.getBoundingClientRect()).map((e) => e.bottom <= p.bottom && e.right <= p.right)",
        place,
    )
    assert held == [True] * 4
    best = text.split("Best Trials")[1]
    infeasible = [trial["number"] for trial in trials if trial["values"][1] > max(BUDGETS)]
    assert not any(f"Trial {number}\n" in best for number in infeasible)
    for file in ("front.csv", "choices.csv"):
        assert file in "".join(text.split())


@pytest.mark.parametrize("name", ["made/tpe", "made: comparison"])
def test_a_study_has_its_note(quiet: Any, base: str, ids: dict[str, int], store: Store, name: str) -> None:
    text = open_study(quiet, base, ids[name], "/note")
    told = Comparison(store, "made").to_dict()
    for search in told["searches"]:
        if name in (search["study"], "made: comparison"):
            assert f"{search['budget_score']:.3f}" in text
            if name == search["study"]:
                assert all(row["chosen"]["tpe"]["schedule"] in text for row in told["by_budget"])
    assert "Nothing that you do on these pages changes a result" in text


def test_the_users_own_constraints_are_seen(quiet: Any, base: str, ids: dict[str, int]) -> None:
    open_study(quiet, base, ids["theirs"])
    traces = quiet.execute_script(TRACES, "graph-pareto-front")
    assert [sorted(trace["x"]) for trace in traces if trace["color"] == INFEASIBLE] == [[3, 4]]


def test_nothing_can_be_deleted_from_the_page(browser: Any, base: str, ids: dict[str, int]) -> None:
    browser.get(f"{base}/dashboard")
    wait(browser, "return document.body.textContent.includes('made/grid')")
    assert_no_button_writes(browser)
    for page in ("", "/note", "/trials"):
        open_study(browser, base, ids["made/tpe"], page)
        assert_no_button_writes(browser)
    browser.get(f"{base}/dashboard")
    browser.execute_script(
        "fetch('/api/studies/1', {method: 'DELETE', body: '{}'}).then((r) => { window.answered = r.status; });"
    )
    assert wait(browser, "return window.answered") == 405
    browser.get_log("browser")  # which tells of the refusal
    assert {one["study_name"] for one in get(f"{base}/api/studies")["study_summaries"]} == ids.keys()


def assert_no_button_writes(browser: Any) -> None:
    """What would be refused is there for optuna-dashboard, and hidden here: each selector still finds its button."""
    seen = browser.execute_script(
        "return [...document.querySelectorAll('button')].filter((b) => b.offsetParent).map((b) =>"
        " `${b.getAttribute('aria-label') ?? ''} ${b.textContent} ${b.querySelector('svg')?.dataset.testid ?? ''}`)"
    )
    writing = re.compile("rename|delete|upload|create|edit", re.IGNORECASE)
    assert [button for button in seen if writing.search(button)] == []


def test_hostile_names_are_text(quiet: Any, base: str, ids: dict[str, int]) -> None:
    quiet.get(f"{base}/dashboard")
    wait(quiet, "return document.body.textContent.includes('made/grid')")
    everything = " ".join(quiet.find_element("css selector", "body").text.split())
    for name in NAMES.values():
        assert " ".join(name.replace("\u202e", "").split())[:40] in everything.replace("\u202e", "")
    for name in (NAMES["hostile"], NAMES["foreign"]):
        for study, page in ((f"{name}/grid", ""), (f"{name}: comparison", "/note")):
            open_study(quiet, base, ids[study], page)
            assert name.split()[0] in wait(quiet, "return document.querySelector('header').textContent")
            assert quiet.execute_script("return document.querySelectorAll('[onerror], img[src=x]').length") == 0
        cells = quiet.execute_script("return [...document.querySelectorAll('td code')].map((e) => e.textContent)")
        assert cells[0].strip("\u2068\u2069").startswith(" ".join(name.split())[:20].replace("\u202e", "?"))
