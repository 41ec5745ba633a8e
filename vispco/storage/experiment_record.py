"""An experiment as the database has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class StoredExperiment:
    """One row of the table of experiments.

    Attributes:
        spec_text: the experiment file; ``spec_hash`` of what it says.
        identity: what may not change while there are trials: model, tasks, splits, content.
        facts: what analysis needs and trials do not say; empty before the first run has measured anything.
        provenance: versions and machine of the last run.
        created: when it was first run, UTC.
    """

    name: str
    spec_text: str
    spec_hash: str
    identity: dict[str, Any]
    facts: dict[str, Any]
    provenance: dict[str, Any]
    created: datetime

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> StoredExperiment:
        """
        Raises:
            TypeError: a column holds something else, because somebody changed it.
            ValueError: a column is no JSON.
        """
        name, columns = row["name"], dict(row)
        if not isinstance(columns["spec_text"], str):
            raise TypeError(f"the study of experiment {name!r} is no text")
        for key in ("identity", "facts", "provenance"):
            columns[key] = json.loads(columns[key])
            if not isinstance(columns[key], dict):
                raise TypeError(f"{key} of experiment {name!r} is no mapping")
        return cls(**columns)

    @property
    def studies(self) -> dict[str, dict[str, Any]]:
        """What is noted of each study, by its name; its settings and its method among it."""
        studies: dict[str, dict[str, Any]] = self.facts.get("studies", {})
        return studies
