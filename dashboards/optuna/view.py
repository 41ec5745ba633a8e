"""The database as optuna-dashboard is shown it: every study with its figure, note, files and constraints; read only.

A view rather than a copy: nothing is written, so that no search, comparison or other reader of the database can be
disturbed, finished trials (which Optuna lets nobody change) get their constraints too, and what is shown follows a
running experiment.
"""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Container
from typing import Any, BinaryIO, NoReturn

from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import func, select
from vispco.dashboards.optuna.additions import PAUSE, Additions, Shown, merged
from vispco.dashboards.optuna.constraints import with_constraints

from vispco.errors import StorageError
from vispco.storage.optuna_sql.tables import studies, trials
from vispco.storage.reading import snapshot
from vispco.storage.store import Store


class DashboardView(BaseStorage):
    """What optuna-dashboard reads in place of the database. Safe with threads.

    Args:
        store: a database, only read.
        pause: seconds between looks for what has changed.
    """

    def __init__(self, store: Store, pause: float = PAUSE) -> None:
        self.store = store
        self.additions = Additions(store, pause)
        self._lock = threading.Lock()
        self._trials: dict[int, tuple[Any, list[FrozenTrial]]] = {}

    # --- studies ---------------------------------------------------------------------------------

    def get_all_studies(self) -> list[FrozenStudy]:
        stored = sorted(self.store.optuna.get_all_studies(), key=lambda study: study._study_id)
        for study in stored:
            study.system_attrs = merged(study.system_attrs, self._added(study.study_name))
        made = [self._comparison_study(shown) for shown in self.additions.all() if shown.name is not None]
        return [*stored, *made]  # pages list the last one first

    def _comparison_study(self, shown: Shown) -> FrozenStudy:
        assert shown.name is not None
        return FrozenStudy(
            study_name=shown.name,
            direction=None,
            directions=[StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE],
            user_attrs=dict(shown.facts),
            system_attrs=dict(shown.attributes[shown.name]),
            study_id=shown.study_id,
        )

    def get_study_id_from_name(self, study_name: str) -> int:
        made = self._made_by_name(study_name)
        return made.study_id if made else self.store.optuna.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        made = self._made(study_id)
        return str(made.name) if made else self.store.optuna.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        if self._made(study_id):
            return [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
        return self.store.optuna.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        made = self._made(study_id)
        return dict(made.facts) if made else self.store.optuna.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        made = self._made(study_id)
        if made is not None:
            return dict(made.attributes[str(made.name)])
        name = self.store.optuna.get_study_name_from_id(study_id)
        shown: dict[str, Any] = merged(self.store.optuna.get_study_system_attrs(study_id), self._added(name))
        return shown

    def _made(self, study_id: int) -> Shown | None:
        if study_id >= 0:
            return None
        made: list[Shown] = self.additions.all()
        found = next((one for one in made if one.name is not None and one.study_id == study_id), None)
        if found is None:
            raise KeyError(f"no study {study_id}")
        return found

    def _made_by_name(self, name: str) -> Shown | None:
        made: list[Shown] = self.additions.all()
        return next((one for one in made if one.name == name), None)

    def _added(self, study_name: str) -> dict[str, Any]:
        shown = self.additions.of_study(study_name)
        return shown.attributes[study_name] if shown else {}

    def _budget(self, study_name: str) -> float | None:
        shown = self.additions.of_study(study_name)
        return shown.budget if shown else None

    # --- trials ----------------------------------------------------------------------------------

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        made = self._made(study_id)
        found = list(made.trials) if made else self._stored_trials(study_id)
        if states is not None:
            found = [trial for trial in found if trial.state in states]
        return copy.deepcopy(found) if deepcopy else list(found)

    def _stored_trials(self, study_id: int) -> list[FrozenTrial]:
        """Read again only if something changed since: finished trials do not."""
        name = self.store.optuna.get_study_name_from_id(study_id)
        budget = self._budget(name)
        with snapshot(self.store.engine) as connection:
            query = select(
                trials.c.state, func.count(), func.max(trials.c.trial_id), func.max(trials.c.datetime_complete)
            )
            rows = connection.execute(query.where(trials.c.study_id == study_id).group_by(trials.c.state)).all()
        state = (name, budget, sorted((row[0].name, *row[1:]) for row in rows))
        settled = all(row[0].is_finished() for row in rows)
        with self._lock:
            known = self._trials.get(study_id)
        if settled and known is not None and known[0] == state:
            return known[1]
        read = self.store.optuna.get_all_trials(study_id, deepcopy=False)
        found = [with_constraints(trial, budget) for trial in read]
        with self._lock:
            self._trials[study_id] = state, found
        return found

    def get_trial(self, trial_id: int) -> FrozenTrial:
        if trial_id >= 0:
            stored = self.store.optuna.get_trial(trial_id)
            with snapshot(self.store.engine) as connection:
                query = select(studies.c.study_name).join(trials, trials.c.study_id == studies.c.study_id)
                name = connection.execute(query.where(trials.c.trial_id == trial_id)).scalar()
            shown: FrozenTrial = with_constraints(stored, self._budget(name or ""))
            return shown
        made = (trial for one in self.additions.all() for trial in one.trials)
        found: FrozenTrial | None = next((trial for trial in made if trial._trial_id == trial_id), None)
        if found is None:
            raise KeyError(f"no trial {trial_id}")
        return found

    # --- an artifact store ---------------------------------------------------------------------------

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """A CSV file by its id.

        Raises:
            ArtifactNotFound: it is none of ours.
        """
        try:
            return io.BytesIO(self.additions.files[artifact_id].encode("utf-8", "replace"))
        except KeyError:
            raise ArtifactNotFound(f"no file {artifact_id}") from None

    # --- writing, which is refused -------------------------------------------------------------------

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise StorageError("the dashboard only reads; write with vispco run, import or copy")

    write = remove = _refuse  # of an artifact store
    create_new_study = delete_study = set_study_user_attr = set_study_system_attr = _refuse
    create_new_trial = set_trial_param = set_trial_state_values = set_trial_intermediate_value = _refuse
    set_trial_user_attr = set_trial_system_attr = _refuse
