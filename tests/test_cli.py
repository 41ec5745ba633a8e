"""The command line as a user meets it: results on stdout, one clear line for every mistake."""

from __future__ import annotations

import csv
import io
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vispco.dashboards.tokens import draw_survivors

import vispco
from conftest import SMALL, VISPCO, Cli, make_batch, python
from vispco.cli.main import app
from vispco.config import load_study, parse_study
from vispco.errors import UserError
from vispco.survivors import Survivors, survivors


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The small experiment with two searches, run by the command line in its own process."""
    folder = tmp_path_factory.mktemp("cli")
    text = SMALL.replace("  grid: {kind: grid}\n", "").replace("  random: {kind: random, compute: lagrangian}\n", "")
    (folder / "study.yaml").write_text(text)
    url = f"sqlite:///{folder}/a.db"
    done = python(*VISPCO, "run", folder / "study.yaml", "--storage", url)
    assert done.returncode == 0, done.stderr
    assert "small: accuracy on held-out samples" in done.stdout
    assert "new trials" in done.stderr
    return url, folder


def test_every_command_has_help(cli: Cli) -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert names == {
        *("run", "resume", "ls", "status", "compare", "report", "plot", "eval", "export", "tokens", "layers"),
        *("dashboard", "validate", "doctor", "copy", "import", "serve", "choose", "profile", "plan"),
        "export-model",
        "rm",
    }
    for name in names:
        code, out, _ = cli(name, "--help")
        assert code == 0
        assert len(out.splitlines()) > 4


def test_run_again_says_it_is_finished(cli: Cli, ran: tuple[str, Path]) -> None:
    url, folder = ran
    code, _, err = cli("run", folder / "study.yaml", "--storage", url)
    assert code == 0
    assert "finished before, nothing to do" in err
    code, _, err = cli("resume", "small", "--storage", url)
    assert code == 0
    assert "finished before, nothing to do" in err


def test_compare_json_is_the_contract(cli: Cli, ran: tuple[str, Path]) -> None:
    code, out, _ = cli("compare", "small", "--json", "--storage", ran[0])
    assert code == 0
    found = json.loads(out)
    assert set(found) == {
        *("experiment", "spec_hash", "accounting", "floor", "budgets", "unpruned", "no_image", "reference_point"),
        *("defaults", "searches", "by_budget"),
    }
    assert set(found["unpruned"]) == {"accuracy", "accuracy_held_out", "flops", "tasks"}
    assert {"name", "accuracy_held_out", "flops_ratio"} <= set(found["defaults"][0])
    assert found["defaults"][0]["name"] == "fastv:k2-r50"
    assert [s["name"] for s in found["searches"]] == ["lagrangian", "tpe"]
    for search in found["searches"]:
        assert set(search) == {
            *("name", "study", "seed", "trials", "evaluations", "charged_flops", "spent_flops", "propose_flops"),
            *("wall_seconds", "budget_score", "budget_score_ci", "hypervolume", "hypervolume_ratio_to_grid"),
            *("cost_ratio_to_grid", "igd_plus", "epsilon", "front"),
            *("budgets_missed", "score_within_budget", "score_within_budget_ci"),
            *("spent_ratio_to_grid", "seconds_ratio_to_grid"),
        }
        # No grid was run: ratios to it cannot be had.
        assert search["hypervolume_ratio_to_grid"] is search["cost_ratio_to_grid"] is search["igd_plus"] is None
        assert search["charged_flops"] >= search["spent_flops"]
        ratios = [point["flops_ratio"] for point in search["front"]]
        accuracies = [point["accuracy"] for point in search["front"]]
        assert ratios == sorted(ratios)
        assert accuracies == sorted(set(accuracies))
        for point in search["front"]:
            assert {"trial", "schedule", "keep_ratio", "accuracy", "accuracy_held_out", "accuracy_ci"} <= set(point)
            assert len(point["keep_ratio"]) == 8
            assert point["accuracy_ci"][0] <= point["accuracy_held_out"] <= point["accuracy_ci"][1]
        chosen = [row["chosen"][search["name"]]["accuracy_held_out"] for row in found["by_budget"]]
        assert search["budget_score"] == pytest.approx(sum(chosen) / 3)
    assert [row["budget"] for row in found["by_budget"]] == found["budgets"]


def test_listings_speak_json_and_csv(cli: Cli, ran: tuple[str, Path]) -> None:
    for command in (
        ["ls"],
        ["status"],
        ["status", "small"],
        ["ls", "methods"],
        ["ls", "schedules"],
        ["ls", "searches"],
    ):
        storage = ["--storage", ran[0]]
        _, as_json, _ = cli(*command, "--json", *storage)
        _, as_csv, _ = cli(*command, "--csv", *storage)
        rows = json.loads(as_json)
        assert rows
        assert [list(row) for row in csv.DictReader(io.StringIO(as_csv))] == [list(row) for row in rows]
    _, out, _ = cli("compare", "small", "--csv", "--storage", ran[0])
    assert [row["search"] for row in csv.DictReader(io.StringIO(out))] == ["lagrangian", "tpe"]
    _, out, _ = cli("compare", "small", "--storage", ran[0])
    assert all(len(line) <= 80 for line in out.splitlines())


def test_export_and_use(cli: Cli, ran: tuple[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    code, out, _ = cli("export", "small", "--budget", 0.6, "-o", file, "--storage", ran[0])
    assert code == 0
    assert out.strip() == str(file)
    written = json.loads(file.read_text())
    assert written["flops_ratio"] <= 0.6
    assert vispco.load_schedule(file).text() == written["schedule"]
    assert (written["family"], written["method"], written["budget"]) == ("step", "fastv", 0.6)
    assert {"torch", "transformers", "vispco"} <= set(written["versions"])
    assert 0 <= written["accuracy"] <= 1
    code, out, _ = cli("eval", ran[1] / "study.yaml", "--schedule", file, "--split", "search", "--json")
    measured = json.loads(out)
    assert (measured["accuracy"], measured["flops_ratio"]) == (written["accuracy"], written["flops_ratio"])


def test_prune_reads_an_exported_file_with_its_method(tiny_llava: Any, tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    exported = {
        "format": "vispco-schedule",
        "version": 2,
        "method": "sparsevlm",
        "method_parameters": {"release": "1.5"},
        "schedule": "multistep(layers=(1, 3), keeps=(0.5, 0.25))",
    }
    file.write_text(json.dumps(exported))
    batch = make_batch([(3, 1, 5)])
    with vispco.prune(tiny_llava, schedule=file) as session:
        tiny_llava(**batch)
    assert session.method == vispco.make_method("sparsevlm", {"release": "1.5"})
    assert session.counts is not None
    assert session.counts.tolist() == [[16, 8, 8, 4]]

    def method(**given: Any) -> Any:
        session = vispco.install(tiny_llava, **given)
        session.remove()
        return session.method

    for schedule in (str(file), file, vispco.load_schedule(file)):
        assert method(schedule=schedule).name == "sparsevlm"
        assert method(schedule=schedule, method="fastv").name == "fastv"
        mine = method(schedule=schedule, heads=2, release="2.0")
        assert mine.parameters() == {"release": "2.0", "heads": 2, "recycle": False}
    assert method(schedule="sparsevlm:192").name == "sparsevlm"
    file.write_text(json.dumps({**exported, "version": 1, "method": "fastv", "method_parameters": {}}))
    assert vispco.load_schedule(file).text() == exported["schedule"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "format version 3, this vispco reads up to 2"),
        ({"version": "2"}, "format version '2'"),
        ({"format": "other"}, "is no exported schedule"),
        ({"method": 7}, "does not name its method"),
        ({"method": "fastw"}, "did you mean 'fastv'"),
        ({"schedule": "step(layer=9, keep=0.5)"}, "layers 0 to 3"),
        ({"schedule": None}, "cannot read schedule"),
    ],
)
def test_bad_schedule_files_get_one_line(tiny_llava: Any, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good = {"format": "vispco-schedule", "version": 2, "method": "fastv", "schedule": "step(layer=1, keep=0.5)"}
    (tmp_path / "s.json").write_text(json.dumps({**good, **change}))
    with pytest.raises(UserError) as error, vispco.prune(tiny_llava, schedule=tmp_path / "s.json"):
        pass
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_schedule_files_that_are_not_there_or_not_json(tiny_llava: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"), vispco.prune(tiny_llava, schedule="nowhere.json"):
        pass
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"), vispco.prune(tiny_llava, schedule=tmp_path / "s.json"):
        pass
    with pytest.raises(UserError, match="did you mean 'sparsevlm:192'"):
        with vispco.prune(tiny_llava, schedule="sparsevlm:191"):
            pass


def test_tokens_writes_a_picture(cli: Cli, ran: tuple[str, Path], tmp_path: Path) -> None:
    study, schedule = ran[1] / "study.yaml", "multistep(layers=(2, 5), keeps=(0.25, 0.0))"
    code, out, _ = cli("tokens", study, "--schedule", schedule, "-o", tmp_path / "t.png")
    assert code == 0
    assert Image.open(out.strip()).width == 12 + 3 * (224 + 12)
    own = tmp_path / "own.png"
    Image.new("RGB", (80, 40), "red").save(own)
    arguments = ["tokens", study, "--schedule", "fastv:k2-r50", "--image", own, "--question", "what color is it?"]
    assert cli(*arguments, "-o", tmp_path / "own-tokens.png")[0] == 0


def test_tokens_greys_out_what_is_dropped() -> None:
    kept = np.array([[True, False], [False, True]])
    picture = Image.new("RGB", (100, 100), "red")
    sheet = draw_survivors(Survivors([picture], {0: [np.ones((2, 2), dtype=bool)], 3: [kept]}, ""))
    top, cell = 12 + 22, 112
    for panel, masks in enumerate(([[1, 1], [1, 1]], kept)):
        for row in range(2):
            for column in range(2):
                at = (12 + panel * 236 + column * cell + cell // 2, top + row * cell + cell // 2)
                assert (sheet.getpixel(at) == (255, 0, 0)) == bool(masks[row][column]), (panel, row, column)


def test_survivors_are_what_the_session_kept(problem: Any) -> None:
    sample = problem.tasks[0].samples("held_out")[0]
    schedule = vispco.MultiStep((2, 5), (0.25, 0.0))
    found = survivors(problem, sample, vispco.make_method("stride"), schedule)
    assert {layer: int(kept[0].sum()) for layer, kept in found.kept.items()} == {0: 64, 2: 16, 5: 0}
    assert [tuple(cell) for cell in np.argwhere(found.kept[2][0])][:2] == [(0, 2), (0, 6)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schedule", "step(layer=99, keep=0.5)"], "layers 0 to 7"),
        (["--schedule", "step(layer=2, keep=0.5)", "--sample", "99"], "no held-out sample 99"),
        (["--schedule", "step(layer=2, keep=0.5)", "-o", "t.nothing"], "cannot write 't.nothing'"),
        (["--schedule", "step(layer=2, keep=0.5)", "--image", "nowhere.png"], "cannot read picture 'nowhere.png'"),
        (["--schedule", "step(layer=2, keep=0.5)", "--method", "fastw"], "did you mean 'fastv'"),
    ],
)
def test_tokens_mistakes(cli: Cli, ran: tuple[str, Path], arguments: list[str], message: str) -> None:
    code, _, err = cli("tokens", ran[1] / "study.yaml", *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_report_is_one_page_that_needs_nothing_else(cli: Cli, ran: tuple[str, Path], tmp_path: Path) -> None:
    code, out, _ = cli("report", "small", "-o", tmp_path / "r.html", "--storage", ran[0])
    assert code == 0
    page = Path(out.strip()).read_text()
    assert 'src="' not in page.split("<body>")[1].split("<script")[0]
    assert "<script src" not in page
    assert "<link" not in page
    for text in ("lagrangian", "tpe", "fastv:k2-r50", "Schedules on the front of", "spec hash", "kind: lagrangian"):
        assert text in page


def test_eval_prints_what_the_evaluator_measures(cli: Cli, ran: tuple[str, Path]) -> None:
    code, out, _ = cli("eval", ran[1] / "study.yaml", "--schedule", "step(layer=2, keep=0.5)", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["schedule"] == "step(layer=2, keep=0.5)"
    assert found["keep_ratio"] == [1.0, 1.0] + [0.5] * 6
    assert 0 <= found["accuracy"] <= 1


def test_validate_and_doctor(cli: Cli, ran: tuple[str, Path]) -> None:
    code, out, _ = cli("validate", ran[1] / "study.yaml")
    assert code == 0
    assert "8 layers of width 96" in out
    assert "64 visual" in out
    code, out, _ = cli("doctor", "--storage", ran[0])
    assert code == 0
    assert "1 experiments" in out
    assert vispco.__version__ in out


STUDY_MISTAKES = {
    "unknown key": ("budgets: 3", "budgets: 3\nsearchs: {}", "unknown key 'searchs'; did you mean 'searches'"),
    "unknown option": ("check: 8", "chekc: 8", "unknown key 'searches.lagrangian.chekc'.*did you mean 'check'"),
    "unknown kind": ("kind: tpe", "kind: tpee", "unknown search 'tpee'; did you mean 'tpe'"),
    "unknown method": ("budgets: 3", "budgets: 3\nmethod: fastvv", "unknown method 'fastvv'; did you mean 'fastv'"),
    "method parameter": (
        "budgets: 3",
        "budgets: 3\nmethod: {name: random, parameters: {sead: 1}}",
        "no parameter 'sead'; did you mean 'seed'",
    ),
    "method without gradients": ("budgets: 3", "budgets: 3\nmethod: random", "'random' is not differentiable"),
    "unknown family": ("budgets: 3", "budgets: 3\nfamily: stepp", "unknown schedule family 'stepp'"),
    "unknown task": ("mosaic-vqa", "mosaik-vqa", "unknown task 'mosaik-vqa'; did you mean 'mosaic-vqa'"),
    "unknown split": ("held_out: 12", "heldout: 12", "unknown split 'heldout'; did you mean 'held_out'"),
    "missing split": (", held_out: 12", "", "no size for split 'held_out'"),
    "unknown model": ("model: demo", "model: /no/such/folder", "cannot load model '/no/such/folder'"),
    "budget below the floor": ("budgets: 3", "budgets: [0.01, 0.5]", r"budget 0\.01 lies outside \[0\.\d+, 1\]"),
    "wrong type": ("budgets: 3", "budgets: many", "budgets.*'many'"),
    "two limits": ("trials: 13", "trials: 13, compute: lagrangian", "give either trials: N or compute: ENTRY"),
    "missing experiment": ("experiment: small\n", "", "key 'experiment' is missing"),
    "bad name": ("experiment: small", "experiment: a/b", "without / and @"),
    "repeated seed": ("kind: tpe", "kind: tpe, seeds: [1, 1]", "seeds repeat"),
    "no yaml": ("budgets: 3", "budgets: [3", "not valid YAML at line"),
    "unknown default": ("budgets: 3", "budgets: 3\ndefaults: ['fastv:k2']", "unknown default 'fastv:k2'"),
}


@pytest.mark.parametrize("mistake", STUDY_MISTAKES)
def test_mistakes_in_a_study_are_one_line(cli: Cli, tmp_path: Path, mistake: str) -> None:
    old, new, message = STUDY_MISTAKES[mistake]
    assert old in SMALL
    (tmp_path / "study.yaml").write_text(SMALL.replace(old, new))
    code, out, err = cli("run", tmp_path / "study.yaml", "--storage", f"sqlite:///{tmp_path}/a.db")
    assert (code, out) == (2, "")
    assert err.startswith("vispco: ")
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err


def test_set_reaches_what_a_text_or_nothing_stands_for() -> None:
    path = Path(__file__).parent.parent / "studies/quickstart.yaml"
    changes = ["model.device=cuda", "method.name=fitprune", "calibration.name=mosaic-vqa", "calibration.samples=8"]
    study, text = load_study(path, [*changes, "tasks.0.splits.search=4"])
    assert (study.model.name, study.model.device, study.method.name) == ("demo", "cuda", "fitprune")
    assert study.calibration is not None
    assert (study.calibration.name, study.calibration.samples) == ("mosaic-vqa", 8)
    assert study.tasks[0].splits["search"] == 4
    assert parse_study(text) == study


def test_other_mistakes_are_one_line(cli: Cli, ran: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = ran
    (tmp_path / "broken.db").write_bytes(b"nothing of the kind" * 99)
    (tmp_path / "changed.yaml").write_text((folder / "study.yaml").read_text().replace("search: 12", "search: 10"))
    mistakes = [
        (["run", tmp_path / "none.yaml"], "cannot read study"),
        (
            ["run", folder / "study.yaml", "--search", "tpee", "--storage", url],
            "no search entry 'tpee'; did you mean 'tpe'",
        ),
        (["run", folder / "study.yaml", "--set", "budgets"], "is not key=value"),
        (["run", folder / "study.yaml", "--set", "experiment=[a"], "is not valid YAML"),
        (["run", folder / "study.yaml", "--set", "tasks.3.name=x"], "'3' is no index of a list of 1"),
        (["run", folder / "study.yaml", "--set", "budgets.low=1"], "'budgets' is a value, not a mapping"),
        (["run", tmp_path / "changed.yaml", "--storage", url], "another 'tasks'"),
        (["compare", "smal", "--storage", url], "no experiment 'smal'"),
        (["compare", "small", "--storage", f"sqlite:///{tmp_path}/broken.db"], "file is not a database"),
        (["compare", "small", "--storage", f"sqlite:///{tmp_path}/none.db"], "run a study first"),
        (["export", "small", "--budget", "0.01", "--storage", url], "fits budget 0.01"),
        (["export", "small", "--budget", "50", "--storage", url], "budget 50 is no share of the unpruned"),
        (["report", "small", "-o", "/no/such/folder/r.html", "--storage", url], "cannot write"),
        (["eval", folder / "study.yaml", "--schedule", "step(layer=9, keep=0.5)"], "layers 0 to 7"),
        (["eval", folder / "study.yaml", "--schedule", "step(layer=2, kepe=0.5)"], "did you mean 'keep'"),
        (["eval", folder / "study.yaml", "--schedule", "step(layer=2, keep=1.5)"], "from 0 to 1"),
        (["eval", folder / "study.yaml", "--schedule", "stp(2, 0.5)"], "did you mean 'step'"),
        (["eval", folder / "study.yaml", "--schedule", "ratios(1, 0.5, 0.6)"], "rises from 0.5 to 0.6"),
        (["ls", "method"], "did you mean 'methods'"),
    ]
    for arguments, message in mistakes:
        code, out, err = cli(*arguments)
        assert (code, out) == (2, ""), (arguments, err)
        assert len(err.splitlines()) == 1, err
        assert message in err, err


def test_no_public_name_but_the_namespaces_is_a_module() -> None:
    """Importing such a module would put it in the name's place."""
    assert [name for name in vispco.__all__ if find_spec(f"vispco.{name}")] == ["methods", "plugins"]


def test_importing_vispco_is_light() -> None:
    code = (
        "import sys, vispco; vispco.Step(layer=2, keep=0.5); "
        "heavy = 'transformers.models', 'plotly', 'torch', 'optuna', 'fastapi', 'openai', 'vllm'; "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = python("-c", code, check=True)
    assert done.stdout.strip() == "[]"
