"""Old databases and new ones: migrated once, by whoever comes first, to the tables that the code uses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, inspect, text

from test_storage import make_evaluation
from vispco.analysis.comparison import Comparison
from vispco.errors import StorageError
from vispco.experiment.run import Run
from vispco.problem import Problem
from vispco.pruning.schedules import Ratios
from vispco.storage.migrations import MIGRATIONS, migrate
from vispco.storage.opening import open_database
from vispco.storage.store import Store
from vispco.storage.tables import metadata

DATA = Path(__file__).parent / "data"

OPENER = """
import sys
import optuna
from vispco.storage.store import Store
optuna.logging.set_verbosity(optuna.logging.WARNING)
print("ready", flush=True)
sys.stdin.read()
store = Store(sys.argv[1])
print(len(store.experiment_names()), store.trial_log("race/x").complete())
"""


def open_together(url: str, processes: int) -> list[tuple[int, str]]:
    """Open ``url`` from several processes at the same moment; exit status and output of each."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(processes)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:  # closing stdin is the starting signal
        assert process.stdin is not None
        process.stdin.close()
    found = []
    for process in started:
        assert process.stdout is not None
        output = process.stdout.read()
        found.append((process.wait(), output))
    return found


def schema(engine: Engine) -> dict[str, Any]:
    """Columns, primary key and unique constraints of our tables."""
    found = {}
    inspector = inspect(engine)
    for table in inspector.get_table_names():
        if table.startswith("vispco_"):
            columns = {
                column["name"]: (str(column["type"]), column["nullable"]) for column in inspector.get_columns(table)
            }
            unique = sorted(tuple(constraint["column_names"]) for constraint in inspector.get_unique_constraints(table))
            found[table] = (columns, inspector.get_pk_constraint(table)["constrained_columns"], unique)
    return found


def version_of(store: Store) -> list[int]:
    with store.reading() as connection:
        return list(connection.execute(text("select version from vispco_version")).scalars())


def old_database(folder: Path) -> str:
    shutil.copy(DATA / "version-1.db", folder / "old.db")
    return f"sqlite:///{folder}/old.db"


def test_migrations_end_at_the_tables_of_today(database_url: str, tmp_path: Path) -> None:
    migrated = Store(database_url)
    if migrated.engine.name == "sqlite":
        direct = create_engine(f"sqlite:///{tmp_path}/direct.db")
        metadata.create_all(direct)
        assert schema(migrated.engine) == schema(direct)
    else:
        found = schema(migrated.engine)
        with migrated.engine.begin() as connection:
            metadata.drop_all(connection)
            metadata.create_all(connection)
        assert schema(migrated.engine) == found
    assert len(schema(migrated.engine)) == len(metadata.tables)


def near(value: Any) -> Any:
    """Equal up to the last bits of floats: sums are taken in another order since."""
    if isinstance(value, dict):
        return {key: near(part) for key, part in value.items()}
    if isinstance(value, list):
        return [near(part) for part in value]
    return pytest.approx(value, rel=1e-12, abs=1e-12) if isinstance(value, float) else value


def without_added(search: dict[str, Any]) -> dict[str, Any]:
    """A search of the comparison without the keys that it did not have then."""
    added = {"budgets_missed", "score_within_budget", "score_within_budget_ci"}
    added |= {"spent_ratio_to_grid", "seconds_ratio_to_grid"}
    assert added <= search.keys()
    return {key: value for key, value in search.items() if key not in added}


def test_an_old_database_compares_as_it_did_and_can_be_extended(tmp_path: Path) -> None:
    store = Store(old_database(tmp_path), create=False)
    assert version_of(store) == [len(MIGRATIONS)]
    expected = json.loads((DATA / "version-1.json").read_text())
    found = json.loads(json.dumps(Comparison(store, "old").to_dict()))
    found["searches"] = [without_added(search) for search in found["searches"]]
    for told in (found["unpruned"], found["no_image"]):
        assert told.pop("tasks")
    for row in found["by_budget"]:
        for chosen in row["chosen"].values():
            assert chosen.pop("missed") is False
            (accuracy,) = chosen.pop("tasks").values()
            assert accuracy == chosen["accuracy_held_out"]
    assert found == near(expected)

    # Six of ten trials per seed: the five that are there are kept as they are, one is added.
    stored = store.require_experiment("old").spec_text
    before = [trial.user_attrs["schedule"] for trial in store.trial_log("old/tpe@1").complete()]
    assert Run(Problem.from_text(stored.replace("trials: 5", "trials: 6")), store).run(["tpe"]) == 2
    after = [trial.user_attrs["schedule"] for trial in store.trial_log("old/tpe@1").complete()]
    assert after[:5] == before
    assert len(after) == 6
    searches = {search["name"]: search for search in Comparison(store, "old").to_dict()["searches"]}
    assert searches["tpe@1"]["trials"] == searches["tpe@2"]["trials"] == 6
    assert without_added(searches["lagrangian"]) == near(
        next(s for s in expected["searches"] if s["name"] == "lagrangian")
    )


def test_the_old_database_is_what_version_1_makes_of_an_empty_one(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/new.db")
    migrate(engine, MIGRATIONS[:1])
    assert schema(engine) == schema(create_engine(f"sqlite:///{DATA}/version-1.db"))


@pytest.mark.slow
def test_many_processes_open_a_new_database(database_url: str) -> None:
    for status, output in open_together(database_url, 4):
        assert (status, output) == (0, "0 []\n")
    store = Store(database_url)
    assert version_of(store) == [len(MIGRATIONS)]
    assert store.study_names("race") == ["race/x"]


@pytest.mark.slow
def test_many_processes_open_an_old_database(tmp_path: Path) -> None:
    url = old_database(tmp_path)
    for status, output in open_together(url, 4):
        assert (status, output) == (0, "1 []\n")
    assert version_of(Store(url)) == [len(MIGRATIONS)]


def test_an_old_database_on_postgresql_is_migrated_by_one_of_many(pg_url: str) -> None:
    storage = open_database(pg_url, create=True, patience=10)
    with storage.engine.begin() as connection:
        metadata.drop_all(connection)
    migrate(storage.engine, MIGRATIONS[:1])
    for status, output in open_together(pg_url, 4):
        assert (status, output) == (0, "0 []\n")
    assert version_of(Store(pg_url)) == [len(MIGRATIONS)]


def test_links_of_an_old_database_take_schedules_of_many_layers(database_url: str) -> None:
    storage = open_database(database_url, create=True, patience=10)
    with storage.engine.begin() as connection:
        metadata.drop_all(connection)
    migrate(storage.engine, MIGRATIONS[:2])
    store = Store(database_url)
    key = "fitprune|" + Ratios([1.0, *[0.9947916666666666] * 79]).text()
    store.link("exp", "schedule", key, make_evaluation())
    assert store.linked("exp", "schedule") == {(key, "search"): "a"}


def test_a_failed_migration_leaves_the_last_good_version(database_url: str) -> None:
    store = Store(database_url)

    def half(connection: Any) -> None:
        connection.execute(text("create table vispco_half (x integer)"))
        raise StorageError("in the middle")

    with pytest.raises(StorageError, match="in the middle"):
        migrate(store.engine, [*MIGRATIONS, half])
    assert version_of(store) == [len(MIGRATIONS)]
    assert "vispco_half" not in inspect(store.engine).get_table_names()
