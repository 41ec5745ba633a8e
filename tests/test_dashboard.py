"""What optuna-dashboard is shown of a database, and that it can only read."""

from __future__ import annotations

import csv
import io
import json
import math
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from vispco.dashboards.optuna import notes
from vispco.dashboards.optuna.constraints import best_trials, is_feasible, with_constraints
from vispco.dashboards.optuna.launcher import guarded, is_loopback, listen, read_only
from vispco.dashboards.optuna.notes import csv_text
from vispco.dashboards.optuna.view import DashboardView
from vispco.dashboards.text import in_markdown

from report_data import BUDGETS, HOSTILE, RIGHT_TO_LEFT, fill
from vispco.analysis.comparison import Comparison, compare
from vispco.analysis.rows import task_rows
from vispco.errors import StorageError
from vispco.experiment.run import Run
from vispco.problem import Problem
from vispco.storage.optuna_sql.bulk import append
from vispco.storage.store import Store

MAXMIN = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(f"sqlite:///{tmp_path}/a.db")
    fill(made)
    return made


def attrs(view: DashboardView, name: str) -> dict[str, Any]:
    return view.get_study_system_attrs(view.get_study_id_from_name(name))


def note(view: DashboardView, name: str) -> str:
    from optuna_dashboard._note import get_note_from_system_attrs

    return get_note_from_system_attrs(attrs(view, name), None)["body"]


def files(view: DashboardView, name: str) -> dict[str, list[dict[str, str]]]:
    """File name -> rows."""
    found = {}
    for key, value in attrs(view, name).items():
        if key.startswith("artifacts:"):
            meta = json.loads(value)
            content = view.open_reader(meta["artifact_id"]).read().decode()
            found[meta["filename"]] = list(csv.DictReader(io.StringIO(content)))
    return found


# --- what is shown -------------------------------------------------------------------------------


def test_every_study_has_its_figure_note_files_and_names(store: Store) -> None:
    view, told = DashboardView(store), Comparison(store, "made").to_dict()
    assert [study.study_name for study in view.get_all_studies()] == [
        *("made/grid", "made/lagrangian", "made/tpe"),
        "made: comparison",
    ]
    for study in view.get_all_studies():
        assert study.directions == MAXMIN
        assert study.system_attrs["study:metric_names"] == ["accuracy", "flops_ratio"]
        prefix = "comparison-" if study.study_name == "made: comparison" else ""
        figure = json.loads(study.system_attrs[f"dashboard:plot_data:{prefix}overlay-held_out:0"])
        named = {trace.get("name") for trace in figure["data"]}
        assert {"grid", "lagrangian", "tpe", "published: fastv:k2-r50"} <= named
        assert not any((trace.get("meta") or {}).get("band") for trace in figure["data"])  # there is no hover for them
        assert study.system_attrs == attrs(view, study.study_name)
    search = told["searches"][1]
    shown = note(view, "made/lagrangian")
    assert f"{search['budget_score']:.3f}" in shown
    for row in told["by_budget"]:
        assert f"| {row['budget']:.3f} | `{row['chosen']['lagrangian']['schedule']}` |" in shown
    found = files(view, "made/lagrangian")
    assert set(found) == {"front.csv", "choices.csv", "trajectory.csv"}
    assert [float(row["accuracy_held_out"]) for row in found["front.csv"]] == [
        point["accuracy_held_out"] for point in search["front"]
    ]
    assert {float(row["budget"]) for row in found["trajectory.csv"]} == set(BUDGETS)
    assert "trajectory.csv" not in files(view, "made/grid")


def test_the_comparison_study_holds_all_fronts(store: Store) -> None:
    view, told = DashboardView(store), Comparison(store, "made").to_dict()
    key = view.get_study_id_from_name("made: comparison")
    assert key < 0
    assert view.get_study_name_from_id(key) == "made: comparison"
    found = [(trial.params["search"], trial.user_attrs["trial"], *trial.values) for trial in view.get_all_trials(key)]
    assert found == [
        (search["name"], point["trial"], point["accuracy"], point["flops_ratio"])
        for search in told["searches"]
        for point in search["front"]
    ]
    held_out = [trial.user_attrs["accuracy_held_out"] for trial in view.get_all_trials(key)]
    assert held_out == [point["accuracy_held_out"] for search in told["searches"] for point in search["front"]]
    rows = files(view, "made: comparison")["searches.csv"]
    assert [float(row["budget_score"]) for row in rows] == [search["budget_score"] for search in told["searches"]]
    trial = view.get_all_trials(key)[3]
    assert view.get_trial(trial._trial_id) == trial
    loaded = optuna.load_study(study_name="made: comparison", storage=view)
    assert optuna.visualization.plot_pareto_front(loaded).data


def test_trials_over_the_budget_are_infeasible(store: Store) -> None:
    view = DashboardView(store)
    for name in ("made/grid", "made: comparison"):
        shown = view.get_all_trials(view.get_study_id_from_name(name))
        over = [trial.values[1] > max(BUDGETS) for trial in shown]
        assert any(over)
        assert not all(over)
        assert [not is_feasible(trial) for trial in shown] == over
        assert view.get_trial(shown[-1]._trial_id)._system_attrs["constraints"] == [
            pytest.approx(shown[-1].values[1] - max(BUDGETS))
        ]


def made_trial(values: list[float], **more: Any) -> Any:
    return create_trial(values=values, **more)


@pytest.mark.parametrize(
    ("trial", "budget", "listed"),
    [
        (made_trial([0.5, 0.6]), None, None),
        (made_trial([0.5, 0.6]), 0.6 - 1e-12, [0.0]),  # within it, but for rounding
        (made_trial([0.5, 0.6]), 0.5, [pytest.approx(0.1)]),
        (made_trial([0.5, 0.6], user_attrs={"budget": 0.55}), 0.9, [pytest.approx(0.05)]),
        (made_trial([0.5, 0.6], user_attrs={"budget": "much"}), 0.9, [pytest.approx(-0.3)]),
        (made_trial([0.5, 0.6], constraints={"memory": 2.0, "time": -1.0}), 0.9, [2.0, -1.0]),
        (made_trial([0.5, 0.6], system_attrs={"constraints": [0.25]}), 0.9, [0.25]),
        (made_trial([0.5, 0.6], system_attrs={"constraints": "<b>"}, constraints={"memory": 3.0}), None, [3.0]),
        (made_trial([0.5, 0.6], constraints={"memory": math.inf}), None, [1e300]),  # JSON has no infinity
        (made_trial([0.5, math.inf]), 0.9, [1e300]),
        (made_trial([0.5, 120.0, 0.7], user_attrs={"cost_ratio": 0.95}), 0.9, [pytest.approx(0.05)]),
        (create_trial(state=TrialState.PRUNED), 0.9, None),
    ],
)
def test_constraints_are_listed_as_the_dashboard_reads_them(trial: Any, budget: float | None, listed: Any) -> None:
    before = dict(trial._system_attrs)
    shown = with_constraints(trial, budget)
    assert trial._system_attrs == before
    assert shown._system_attrs.get("constraints", None) == listed or listed is None
    if listed is None:
        assert shown is trial
    json.loads(json.dumps(shown._system_attrs["constraints"], allow_nan=False) if listed else "[]")


def test_best_trials_are_feasible_and_equal_to_optunas() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    for number in range(60):
        values = [(number * 7 % 12) / 12, (number * 5 % 11) / 11]
        study.add_trial(create_trial(values=values, constraints={"c": number % 3 - 1.0}))
    shown = [with_constraints(trial, None) for trial in study.trials]
    best = best_trials(shown, MAXMIN)
    assert {trial.number for trial in best} == {trial.number for trial in study.best_trials}
    unconstrained = best_trials(study.trials, MAXMIN)
    assert {trial.number for trial in unconstrained} != {trial.number for trial in best}
    assert best_trials([t for t in shown if not is_feasible(t)], MAXMIN) == []


def test_what_is_shown_follows_the_database(store: Store) -> None:
    """More trials join; those of the comparison study keep their places, as pages ask only for what is new."""
    view = DashboardView(store, pause=0.0)
    key = view.get_study_id_from_name("made/tpe")
    made = view.get_study_id_from_name("made: comparison")
    before, fronts, told = view.get_all_trials(key), view.get_all_trials(made), note(view, "made/tpe")
    assert [trial.number for trial in fronts] == list(range(len(fronts)))
    parameters = {"params": {"keep": 0.5}, "distributions": {"keep": FloatDistribution(0.0, 1.0)}}
    with store.engine.begin() as connection:
        append(connection, key, [create_trial(values=[0.99, 0.26], user_attrs={"schedule": "new"}, **parameters)])
    for shown in view.additions.all():
        shown.made = -math.inf
    assert len(view.get_all_trials(key)) == len(before) + 1
    after = view.get_all_trials(made)
    assert after[: len(fronts)] == fronts
    assert [trial.user_attrs["schedule"] for trial in after[len(fronts) :]] == ["new"]
    assert "`new`" in note(view, "made/tpe") != told
    store.delete_experiment("made")
    assert view.get_all_studies() == []
    fill(store, seed=3)
    assert view.get_all_trials(key) != before  # although SQLite gives the same ids again
    assert [s.study_name for s in view.get_all_studies()][-1] == "made: comparison"


def test_what_was_removed_is_not_shown_again(store: Store) -> None:
    """An entry that runs anew has the same numbers for other trials."""
    view = DashboardView(store, pause=0.0)
    before = view.get_study_id_from_name("made: comparison")
    store.delete_experiment("made")
    fill(store, seed=3)
    for shown in view.additions._shown.values():
        shown.made = -math.inf
    made = view.get_study_id_from_name("made: comparison")
    assert made != before
    fresh = DashboardView(store)
    assert [trial.values for trial in view.get_all_trials(made)] == [
        trial.values for trial in fresh.get_all_trials(fresh.get_study_id_from_name("made: comparison"))
    ]


def test_a_missed_budget_is_no_choice(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'a.db'}")
    fill(store, entries={"tpe": ("tpe", 1, 12, 0.0)})
    comparison = Comparison(store, "made")
    comparison._choose(comparison.searches, [0.001, 0.8])
    told = comparison.to_dict()
    shown = notes.study_note(told, told["searches"][0], comparison.searches[0])
    assert "| 0.001 | missed: no image | - |" in shown
    missed = [row["missed"] for row in notes.choice_rows(told, ["tpe"])]
    assert missed == [True, False] == [row["missed"] for row in task_rows(told)]


def test_opening_twice_shows_the_same(store: Store) -> None:
    first, second = (
        [(study.study_name, study._study_id, study.system_attrs) for study in DashboardView(store).get_all_studies()]
        for _ in range(2)
    )
    assert first == second


def test_an_experiment_that_cannot_be_read_hides_no_other(store: Store) -> None:
    fill(store, "broken")
    store.save_facts("broken", {"budgets": ["<b>x</b>"], "studies": {"broken/grid": {"kind": "grid"}}})
    store.save_experiment("empty", spec_text="", spec_hash="", identity={}, provenance={})
    plain = optuna.create_study(study_name="theirs", storage=store.optuna, directions=["minimize"])
    plain.add_trial(create_trial(value=1.0, constraints={"c": 1.0}))
    view = DashboardView(store)
    names = {study.study_name for study in view.get_all_studies()}
    assert names == {
        *("made/grid", "made/lagrangian", "made/tpe", "made: comparison", "theirs"),
        *("broken/grid", "broken/lagrangian", "broken/tpe"),
    }
    assert "cannot be compared" in note(view, "broken/grid")
    (trial,) = view.get_all_trials(view.get_study_id_from_name("theirs"))
    assert trial._system_attrs["constraints"] == [1.0]


def test_a_study_of_the_users_keeps_its_name(store: Store) -> None:
    theirs = optuna.create_study(study_name="made: comparison", storage=store.optuna)
    view = DashboardView(store)
    assert view.get_study_id_from_name("made: comparison") == theirs._study_id
    assert [study.study_name for study in view.get_all_studies()][-1] == "made: comparison of fronts"


def test_the_users_own_note_stays_and_comes_first(store: Store) -> None:
    from optuna_dashboard import save_note

    study = optuna.load_study(study_name="made/tpe", storage=store.optuna)
    mine = "my own words " * 400  # longer than one attribute
    save_note(study, mine)
    theirs = store.optuna.get_study_system_attrs(study._study_id)
    shown = note(DashboardView(store), "made/tpe")
    assert shown.startswith(mine + "\n\n---\n\n| ")
    assert store.optuna.get_study_system_attrs(study._study_id) == theirs


# --- nothing is written ----------------------------------------------------------------------------


def contents(store: Store) -> dict[str, list[Any]]:
    with store.engine.connect() as connection:
        names = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'table'")).scalars().all()
        return {name: list(map(tuple, connection.execute(text(f'SELECT * FROM "{name}"')))) for name in names}


def test_looking_changes_nothing(store: Store) -> None:
    before = contents(store)
    assert {"trials", "vispco_evaluation"} <= before.keys()
    with serving(store.url) as base:
        for study in get(f"{base}/api/studies")["study_summaries"]:
            place = f"{base}/api/studies/{study['study_id']}"
            detail = get(place)
            assert detail["trials"]
            for kind in ("pareto_front", "timeline", "edf", "slice"):
                get(f"{place}/plot/{kind}")
            for artifact in detail["artifacts"]:
                urllib.request.urlopen(f"{base}/artifacts/{study['study_id']}/{artifact['artifact_id']}").read()
            urllib.request.urlopen(f"{base}/csv/{study['study_id']}").read()
    assert contents(store) == before


def test_the_view_refuses_to_write(store: Store) -> None:
    view = DashboardView(store)
    study = optuna.load_study(study_name="made/tpe", storage=view)
    for write in (
        lambda: study.ask(),
        lambda: study.set_user_attr("a", 1),
        lambda: study.add_trial(create_trial(values=[0.1, 0.2])),
        lambda: optuna.delete_study(study_name="made/tpe", storage=view),
        lambda: optuna.create_study(study_name="x", storage=view),
        lambda: view.set_study_system_attr(1, "a", 1),
        lambda: view.set_trial_state_values(1, TrialState.FAIL),
        lambda: view.write("00", io.BytesIO(b"")),
        lambda: view.remove("00"),
    ):
        with pytest.raises(StorageError, match="only reads"):
            write()


def test_the_database_refuses_too(database_url: str) -> None:
    fill(Store(database_url), entries={"grid": ("grid", None, 5, 0.0)})
    store = Store(database_url)
    read_only(store)
    assert DashboardView(store).get_all_trials(store.optuna.get_study_id_from_name("made/grid"))
    with pytest.raises(optuna.exceptions.StorageInternalError):
        store.optuna.set_study_user_attr(1, "a", 1)
    with store.engine.connect() as connection:
        with pytest.raises(SQLAlchemyError, match=r"(?i)read-?only"):
            connection.execute(text("DELETE FROM vispco_experiment"))
    assert Store(database_url).experiment_names() == ["made"]


def test_an_open_dashboard_changes_no_run(tmp_path: Path) -> None:
    """Served and read while a search runs, stops and resumes: the trials are those of an undisturbed one."""

    def study(trials: int) -> Problem:
        return Problem.from_text(
            "experiment: small\nmodel: demo\nbudgets: 3\ntasks:\n"
            "  - {name: mosaic-vqa, splits: {calibration: 4, search: 4, held_out: 4}}\n"
            f"searches:\n  tpe: {{kind: tpe, trials: {trials}, batch: 2}}\n"
        )

    alone, watched = Store(f"sqlite:///{tmp_path}/alone.db"), Store(f"sqlite:///{tmp_path}/watched.db")
    whole = study(6)
    Run(whole, alone).run()
    Run(study(4), watched).run()
    with serving(watched.url) as base:
        stop, looks = threading.Event(), []

        def look() -> None:
            while not stop.wait(0.2):
                for one in get(f"{base}/api/studies")["study_summaries"]:
                    looks.append(len(get(f"{base}/api/studies/{one['study_id']}")["trials"]))

        reader = threading.Thread(target=look)
        reader.start()
        try:
            assert Run(whole, watched).run() == 2
            assert Run(whole, watched).run() == 0
        finally:
            stop.set()
            reader.join()
    assert looks
    results = [compare(one, ["small"]) for one in (alone, watched)]
    for result in results:
        for search in result["searches"]:
            del search["wall_seconds"], search["spent_flops"]
    assert results[0] == results[1]


# --- the server ------------------------------------------------------------------------------------


class serving:
    """``with serving(url) as base:`` the dashboard on a free port."""

    def __init__(self, url: str) -> None:
        self.server = listen(Store(url, create=False), "127.0.0.1", 0)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.loads(answer.read(), parse_constant=lambda constant: pytest.fail(f"{constant} in {url}"))


@pytest.fixture
def base(store: Store) -> Iterator[str]:
    with serving(store.url) as found:
        yield found


def test_strangers_can_neither_write_nor_read(base: str, store: Store) -> None:
    before = contents(store)
    for method, path, body in (
        ("DELETE", "/api/studies/1", "{}"),
        ("POST", "/api/studies", '{"study_name": "x", "directions": ["minimize"]}'),
        ("POST", "/api/studies/1/rename", '{"study_name": "x"}'),
        ("PUT", "/api/studies/1/note", '{"version": 1, "body": "x"}'),
        ("POST", "/api/trials/1/tell", '{"state": "Fail"}'),
        ("POST", "/api/trials/1/user-attrs", '{"user_attrs": {"a": 1}}'),
        ("POST", "/api/artifacts/1", '{"file": "data:,x", "filename": "x"}'),
        ("POST", "/incompatible-rdb-schema", ""),
        ("PATCH", "/", ""),
    ):
        request = urllib.request.Request(
            base + path, body.encode(), {"Content-Type": "application/json"}, method=method
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code == 405
        assert json.loads(refused.value.read())["reason"] == "this dashboard only reads"
    assert contents(store) == before
    for host in ("attacker.example", "attacker.example:80", "192.0.2.1", "localhost.attacker.example", "", "[::1"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(f"{base}/api/studies", headers={"Host": host}))
        assert refused.value.code == 403
    for host in ("localhost", "localhost:8080", "[::1]:8080", "127.0.0.1"):
        assert (
            urllib.request.urlopen(urllib.request.Request(f"{base}/api/studies", headers={"Host": host})).status == 200
        )


def test_pages_elsewhere_may_not_read_files(base: str) -> None:
    (artifact, *_) = get(f"{base}/api/studies/1")["artifacts"]
    with urllib.request.urlopen(f"{base}/artifacts/1/{artifact['artifact_id']}") as answer:
        assert answer.headers["Content-Type"] == "text/csv"
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in answer.headers["Content-Security-Policy"]
    with urllib.request.urlopen(f"{base}/dashboard") as answer:
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "script-src 'self'" in answer.headers["Content-Security-Policy"]


def test_best_trials_of_a_page_are_feasible(base: str) -> None:
    for study in get(f"{base}/api/studies")["study_summaries"]:
        detail = get(f"{base}/api/studies/{study['study_id']}")
        assert detail["best_trials"]
        assert all(value <= 0 for trial in detail["best_trials"] for value in trial["constraints"])
        assert any(value > 0 for trial in detail["trials"] for value in trial["constraints"])


def test_a_connection_that_says_nothing_keeps_nobody_waiting(base: str) -> None:
    host, port = base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))):
        time.sleep(0.1)
        assert get(f"{base}/api/studies")["study_summaries"]


def test_an_address_that_others_reach_takes_any_name() -> None:
    def app(environ: dict[str, Any], start: Any) -> list[bytes]:
        start("200 OK", [])
        return [b"yes"]

    seen: list[str] = []
    environ = {"REQUEST_METHOD": "GET", "HTTP_HOST": "team.example"}
    assert guarded(app, loopback=False)(environ, lambda status, headers: seen.append(status)) == [b"yes"]
    assert guarded(app, loopback=True)(environ, lambda status, headers: seen.append(status)) != [b"yes"]
    assert seen == ["200 OK", "403 Forbidden"]
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))


# --- hostile texts -----------------------------------------------------------------------------------


def test_hostile_names_are_text(tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "").strip()
    store = Store(f"sqlite:///{tmp_path}/a.db")
    fill(store, name, tasks=[HOSTILE, RIGHT_TO_LEFT], note=HOSTILE, entries={"grid": ("grid", None, 12, 0.0)})
    with serving(store.url) as base:
        for study in get(f"{base}/api/studies")["study_summaries"]:
            detail = get(f"{base}/api/studies/{study['study_id']}")
            assert detail["name"].startswith(name)
            body = detail["note"]["body"]
            assert "<script>" in body
            assert "<" not in "".join(body.split("`")[::2])  # only in code
            assert urllib.request.urlopen(f"{base}/csv/{study['study_id']}").status == 200


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain", "`plain`"),
        ("a`b", "`` a`b ``"),
        ("``x` `", "``` ``x` ` ```"),
        ("a|b\nc", "`a\\|b c`"),
        ("", "` `"),
        ("[x](javascript:1) ![](http://e/x.png) <b>", "`[x](javascript:1) ![](http://e/x.png) <b>`"),
        ("x" * 70, f"`{'x' * 57}...`"),
        ("\u202eab\x00", "`?ab?`"),
        ("\u05e9", "`\u2068\u05e9\u2069`"),
    ],
)
def test_names_in_a_note(given: str, shown: str) -> None:
    assert in_markdown(given) == shown


def test_spreadsheets_compute_nothing() -> None:
    rows = [{"a": '=HYPERLINK("http://e")', "b": "-1", "c": -1.5, "d": None}, {"a": "@x", "b": "plain, text", "c": 2}]
    assert list(csv.reader(io.StringIO(csv_text(rows)))) == [
        ["a", "b", "c", "d"],
        ['\'=HYPERLINK("http://e")', "'-1", "-1.5", ""],
        ["'@x", "plain, text", "2", ""],
    ]
