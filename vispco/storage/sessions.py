"""What the store adds to Optuna's own transactions: the lock's fence, and trials that are stored once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
from sqlalchemy import column, event, select, table
from sqlalchemy.exc import DBAPIError, IntegrityError

from vispco.storage.faults import Interrupted
from vispco.storage.lock import Held

TOKEN = "token"
_attributes = table("trial_user_attributes", column("key"), column("value_json"))


class AlreadyStored(Exception):
    """An earlier try, whose answer was lost with the connection, had stored this trial."""


class Sessions:
    """Listens to the sessions of one Optuna storage.

    Every transaction that writes is fenced by the locks that ``held`` gives. Inside :meth:`adding` a database error
    leaves Optuna at once, instead of being tried again there for up to five times the busy timeout; and a trial whose
    token was tried before is looked for in the same transaction, after Optuna has locked its study, so that not even
    a commit that was still under way on the server can make it two.
    """

    def __init__(self, storage: optuna.storages.RDBStorage, held: Callable[[], Iterable[Held]]) -> None:
        self._held = held
        self._tried: set[str] = set()
        self._state = threading.local()
        event.listen(storage.scoped_session.session_factory, "before_flush", self._before_flush)
        event.listen(storage.engine, "handle_error", self._on_error)

    @contextmanager
    def adding(self) -> Iterator[None]:
        self._state.adding = True
        try:
            yield
        finally:
            self._state.adding = False

    def _before_flush(self, session: Any, *_: Any) -> None:
        if not (session.new or session.dirty or session.deleted):
            return
        if session.info.get("fenced") is not session.get_transaction():
            for held in self._held():
                held.fence(session.connection())
            session.info["fenced"] = session.get_transaction()
        for row in session.new:
            if row.__tablename__ == _attributes.name and row.key == TOKEN:
                if row.value_json in self._tried:
                    same = select(_attributes.c.key).where(
                        _attributes.c.key == TOKEN, _attributes.c.value_json == row.value_json
                    )
                    if session.connection().execute(same).first() is not None:
                        raise AlreadyStored(row.value_json)
                self._tried.add(row.value_json)

    def _on_error(self, context: Any) -> None:
        error = context.sqlalchemy_exception
        if (
            getattr(self._state, "adding", False)
            and isinstance(error, DBAPIError)
            and not isinstance(error, IntegrityError)
        ):
            raise Interrupted(str(context.original_exception)) from context.original_exception
