"""What was measured: evaluations, unfinished parts of others, and which schedules they answer for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Column, Connection, Table, bindparam, delete, select

from vispco.config import content_hash
from vispco.evaluation.records import Evaluation
from vispco.storage.database import Database, now
from vispco.storage.tables import blocks, evaluations, groups, links
from vispco.storage.upsert import insert_missing, upsert

CHUNK = 500  # values in one IN (...)
# Columns that are as in an Evaluation.
AS_THEY_ARE = ("id", "split", "method", "schedule", "accuracy", "flops_ratio", "flops", "kv_bytes")

BlockRow = tuple[str, str, int, NDArray[Any]]


class MeasurementStore(Database):
    """Evaluations by the hash of what they depend on, shared by all experiments of a database."""

    # --- evaluations -----------------------------------------------------------------------------

    def get_evaluation(self, evaluation_id: str) -> Evaluation | None:
        return self.get_evaluations([evaluation_id]).get(evaluation_id)

    def get_evaluations(self, ids: Iterable[str]) -> dict[str, Evaluation]:
        wanted = sorted(set(ids))

        def read(connection: Connection) -> dict[str, Evaluation]:
            rows = select_in(connection, evaluations, evaluations.c.id, wanted)
            return {row.id: _evaluation(row) for row in rows}

        return self.read(read)

    def put_evaluation(self, evaluation: Evaluation, sample_groups: Mapping[str, Sequence[str]]) -> None:
        self.put_evaluations([evaluation], sample_groups)

    def put_evaluations(self, finished: Iterable[Evaluation], sample_groups: Mapping[str, Sequence[str]]) -> None:
        """Store what is missing and forget the blocks of these evaluations, in one transaction.

        Args:
            finished: evaluations of one split.
            sample_groups: group of each sample, per task.
        """
        groups_of: dict[tuple[str, ...], dict[str, Any]] = {}
        rows = []
        for evaluation in finished:
            names = tuple(sorted(evaluation.scores))
            if names not in groups_of:
                text = json.dumps({name: list(sample_groups[name]) for name in names})
                groups_of[names] = {"id": content_hash(text), "groups": text}
            rows.append(_row(evaluation, names, groups_of[names]["id"]))
        if not rows:
            return

        def change(connection: Connection) -> None:
            insert_missing(connection, groups, list(groups_of.values()), ["id"])
            insert_missing(connection, evaluations, rows, ["id"])
            connection.execute(
                delete(blocks).where(blocks.c.evaluation == bindparam("finished")),
                [{"finished": row["id"]} for row in rows],
            )

        self.write(change)

    # --- parts of evaluations ----------------------------------------------------------------------

    def save_blocks(self, rows: Iterable[BlockRow]) -> None:
        """Store scores of parts of evaluations that are not finished, in one transaction; replaces what is there.

        Args:
            rows: (evaluation id, task, block number, scores [S] of that block, kept as float32).
        """
        created = now()
        values = {
            (evaluation, task, int(block)): {
                "evaluation": evaluation,
                "task": task,
                "block": int(block),
                "scores": np.asarray(scores, dtype="<f4").tobytes(),
                "created": created,
            }
            for evaluation, task, block, scores in rows
        }
        if values:
            keys = ["evaluation", "task", "block"]
            self.write(lambda connection: upsert(connection, blocks, list(values.values()), keys))

    def load_blocks(self, ids: Iterable[str]) -> dict[str, dict[tuple[str, int], NDArray[np.float64]]]:
        """evaluation id -> (task, block number) -> scores [S]; evaluations without blocks are left out."""
        found: dict[str, dict[tuple[str, int], NDArray[np.float64]]] = {}
        wanted = sorted(set(ids))
        for row in self.read(lambda connection: select_in(connection, blocks, blocks.c.evaluation, wanted)):
            scores = np.frombuffer(row.scores, dtype="<f4").astype(np.float64)
            found.setdefault(row.evaluation, {})[row.task, row.block] = scores
        return found

    # --- groups ------------------------------------------------------------------------------------

    def groups_of(self, evaluation_id: str) -> dict[str, list[str]]:
        """Group of each sample, per task."""
        query = (
            select(groups.c.groups)
            .join(evaluations, evaluations.c.groups_id == groups.c.id)
            .where(evaluations.c.id == evaluation_id)
        )

        def read(connection: Connection) -> dict[str, list[str]]:
            text = connection.execute(query).scalar()
            found = json.loads(text) if text else {}
            if not isinstance(found, dict):
                raise TypeError(f"the groups of evaluation {evaluation_id} are no mapping")
            return found

        return self.read(read)

    # --- links --------------------------------------------------------------------

    def link(self, experiment: str, role: str, key: str, evaluation: Evaluation) -> None:
        """Note that ``evaluation`` answers ``role``/``key`` on its split."""
        self.link_all(experiment, role, [(key, evaluation)])

    def link_all(self, experiment: str, role: str, rows: Iterable[tuple[str, Evaluation]]) -> None:
        """Note for each (key, evaluation) that it answers ``role``/``key`` on its split, in one transaction."""
        values = {
            (key, evaluation.split): {
                "experiment": experiment,
                "role": role,
                "key": key,
                "split": evaluation.split,
                "evaluation": evaluation.id,
            }
            for key, evaluation in rows
        }
        if values:
            keys = ["experiment", "role", "key", "split"]
            self.write(lambda connection: upsert(connection, links, list(values.values()), keys))

    def linked(self, experiment: str, role: str) -> dict[tuple[str, str], str]:
        """(key, split) -> evaluation id."""
        query = select(links).where(links.c.experiment == experiment, links.c.role == role)
        rows = self.read(lambda connection: connection.execute(query).all())
        return {(row.key, row.split): row.evaluation for row in rows}


def select_in(connection: Connection, table: Table, column: Column[str], wanted: Sequence[str]) -> list[Any]:
    """Rows whose ``column`` is one of ``wanted``."""
    rows: list[Any] = []
    for start in range(0, len(wanted), CHUNK):
        rows += connection.execute(select(table).where(column.in_(wanted[start : start + CHUNK]))).all()
    return rows


def _row(evaluation: Evaluation, names: Sequence[str], groups_id: str) -> dict[str, Any]:
    return {
        **{name: getattr(evaluation, name) for name in AS_THEY_ARE},
        "keep_ratio": json.dumps(evaluation.keep_ratio),
        "tasks": json.dumps(evaluation.tasks),
        "scores": b"".join(np.asarray(evaluation.scores[name], dtype="<f4").tobytes() for name in names),
        "score_counts": json.dumps({name: len(evaluation.scores[name]) for name in names}),
        "groups_id": groups_id,
        "created": now(),
    }


def _evaluation(row: Any) -> Evaluation:
    sizes: dict[str, int] = json.loads(row.score_counts)
    flat = np.frombuffer(row.scores, dtype="<f4").astype(np.float64)
    ends = np.cumsum(list(sizes.values()))
    scores = dict(zip(sizes, np.split(flat, ends[:-1]), strict=True))
    return Evaluation(
        **{name: getattr(row, name) for name in AS_THEY_ARE},
        keep_ratio=tuple(json.loads(row.keep_ratio)),
        spent_flops=0,
        tasks=json.loads(row.tasks),
        scores=scores,
    )
