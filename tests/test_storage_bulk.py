"""Bulk writing: parts of evaluations, many evaluations and links at once, who works on what; on both databases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from sqlalchemy import event

from test_storage import make_evaluation
from vispco.storage.store import Store

GROUPS = {"x": ["g1", "g1", "g2"], "b": ["h"]}


def test_blocks_come_back_and_are_replaced(store: Store) -> None:
    zeros_and_ones = np.random.default_rng(0).integers(0, 2, 64).astype(float)
    fractions = np.array([1 / 3, 0.1, 1e-7])
    store.save_blocks([("a", "x", 0, zeros_and_ones), ("a", "x", 1, fractions), ("a", "y", 0, np.array([]))])
    store.save_blocks([("b", "x", 7, np.array([1.0]))])
    found = store.load_blocks(["a", "b", "c"])
    assert set(found) == {"a", "b"}
    assert set(found["a"]) == {("x", 0), ("x", 1), ("y", 0)}
    assert found["a"]["x", 0].dtype == np.float64
    assert np.array_equal(found["a"]["x", 0], zeros_and_ones)
    assert np.array_equal(found["a"]["x", 1], fractions.astype(np.float32).astype(np.float64))
    assert len(found["a"]["y", 0]) == 0
    # Again, one block longer than before and twice in one call: the last one stays.
    store.save_blocks([("a", "x", 1, np.array([9.0])), ("a", "x", 1, np.array([1.0, 0.0, 1.0, 1.0]))])
    assert store.load_blocks(["a"])["a"]["x", 1].tolist() == [1, 0, 1, 1]
    assert store.load_blocks([]) == {}
    store.save_blocks([])


def test_finished_evaluations_replace_their_blocks(store: Store) -> None:
    many = [replace(make_evaluation(f"e{number}"), accuracy=number / 1200) for number in range(1200)]
    store.save_blocks([(one.id, "x", 0, np.ones(2)) for one in many] + [("other", "x", 0, np.ones(2))])
    store.put_evaluations(many[:1], GROUPS)
    store.put_evaluations(iter(many), GROUPS)
    found = store.get_evaluations([one.id for one in many])
    assert {name: one.accuracy for name, one in found.items()} == {one.id: one.accuracy for one in many}
    assert found["e7"].scores["x"].tolist() == [1, 0.25, 0]
    assert store.groups_of("e7") == GROUPS
    assert set(store.load_blocks([*found, "other"])) == {"other"}
    store.put_evaluations([], {})


def test_evaluations_that_are_there_stay_as_they_are(store: Store) -> None:
    store.put_evaluation(make_evaluation("a", accuracy=0.25), GROUPS)
    store.put_evaluations([make_evaluation("a", accuracy=0.75), make_evaluation("b")], GROUPS)
    found = store.get_evaluations(["a", "b"])
    assert (found["a"].accuracy, found["b"].accuracy) == (0.25, 0.5)


def test_one_transaction_each(store: Store) -> None:
    commits = []
    event.listen(store.engine, "commit", lambda connection: commits.append(1))
    many = [make_evaluation(f"e{number}") for number in range(50)]
    for write in (
        lambda: store.save_blocks([(one.id, "x", 0, np.ones(2)) for one in many]),
        lambda: store.put_evaluations(many, GROUPS),
        lambda: store.link_all("exp", "schedule", [(one.id, one) for one in many]),
        lambda: store.save_workers("exp", [worker_row(str(number)) for number in range(50)]),
    ):
        commits.clear()
        write()
        assert len(commits) == 1


def test_links_are_replaced_per_split(store: Store) -> None:
    search, held_out = make_evaluation("a"), replace(make_evaluation("b"), split="held_out")
    store.link_all("exp", "schedule", [("k", search), ("k", held_out), ("l", search)])
    assert store.linked("exp", "schedule") == {("k", "search"): "a", ("k", "held_out"): "b", ("l", "search"): "a"}
    store.link_all("exp", "schedule", [("k", make_evaluation("c")), ("k", make_evaluation("d"))])
    assert store.linked("exp", "schedule") == {("k", "search"): "d", ("k", "held_out"): "b", ("l", "search"): "a"}
    assert store.linked("exp", "reference") == {}
    store.link_all("exp", "schedule", [])


def worker_row(name: str, doing: str = "block 3 of e1") -> dict[str, object]:
    return {"worker": name, "host": "h", "pid": 7, "doing": doing, "since": 1.5, "done": 2, "seen": 2.5}


def test_workers_of_one_experiment_are_replaced(store: Store) -> None:
    store.save_workers("exp", [worker_row("w2"), worker_row("w1")])
    store.save_workers("other", [worker_row("w1")])
    assert [row["worker"] for row in store.workers("exp")] == ["w1", "w2"]
    assert store.workers("exp")[0] == {"experiment": "exp", **worker_row("w1")}
    store.save_workers("exp", [worker_row("w3", "resting")])
    assert [(row["worker"], row["doing"]) for row in store.workers("exp")] == [("w3", "resting")]
    store.save_experiment("exp", spec_text="x", spec_hash="h", identity={}, provenance={})
    store.delete_experiment("exp")
    assert store.workers("exp") == []
    assert len(store.workers("other")) == 1


def test_a_reader_neither_waits_nor_keeps_waiting(store: Store) -> None:
    """A reader in the middle of its transaction, then a writer, then the reader again: one state, no waiting."""
    store.put_evaluation(make_evaluation("a"), GROUPS)
    with store.reading() as connection:
        query = "select count(*) from vispco_evaluation"
        assert connection.exec_driver_sql(query).scalar() == 1
        store.put_evaluation(make_evaluation("b"), GROUPS)
        if store.engine.name == "sqlite":
            assert connection.exec_driver_sql(query).scalar() == 1
    assert set(store.get_evaluations(["a", "b"])) == {"a", "b"}
    with store.engine.begin() as writer:
        writer.exec_driver_sql("delete from vispco_evaluation")
        assert set(store.get_evaluations(["a", "b"])) == {"a", "b"}
    assert store.get_evaluations(["a", "b"]) == {}
