"""What the store adds to Optuna's own transactions: the lock's fence, and trials that are stored once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
from sqlalchemy import column, event, select, table
from sqlalchemy.exc import DBAPIError, IntegrityError

from vispco.storage.faults import Interrupted
from vispco.storage.lock import Held

TOKEN = "vispco:token"
_attributes = table("trial_system_attributes", column("key"), column("value_json"))


class AlreadyStored(Exception):
    """An earlier try, whose answer was lost with the connection, had stored this trial."""


class Sessions:
    """Listens to the sessions of one Optuna storage.

    Every transaction that writes is fenced by the locks that ``held`` gives. Inside :meth:`adding` a database error
    leaves Optuna at once, instead of being tried again there for up to five times the busy timeout; and a trial whose
    token was tried before is looked for in the transaction that would store it, after Optuna has locked its study, so
    that not even a commit that was still under way on the server can make it two.
    """

    def __init__(self, storage: optuna.storages.RDBStorage, held: Callable[[], Iterable[Held]]) -> None:
        self._held = held
        self._tried: set[str] = set()
        self._state = threading.local()
        event.listen(storage.scoped_session.session_factory, "before_flush", self._before_flush)
        event.listen(storage.engine, "handle_error", self._on_error)

    @contextmanager
    def adding(self, token: str) -> Iterator[None]:
        """Add one trial, that carries ``token``, inside the block; the same token again is another try.

        Raises:
            AlreadyStored: an earlier try had stored it.
        """
        self._state.token = token
        try:
            yield
        finally:
            self._state.token = None
        self._tried.discard(token)

    def _before_flush(self, session: Any, *_: Any) -> None:
        if not (session.new or session.dirty or session.deleted):
            return
        transaction = session.get_transaction()
        if session.info.get("seen") is transaction:
            return
        for held in self._held():
            held.fence(session.connection())
        token = getattr(self._state, "token", None)
        if token in self._tried:
            same = select(_attributes.c.key).where(
                _attributes.c.key == TOKEN, _attributes.c.value_json == json.dumps(token)
            )
            if session.connection().execute(same).first() is not None:
                raise AlreadyStored(token)
        elif token is not None:
            self._tried.add(token)
        session.info["seen"] = transaction

    def _on_error(self, context: Any) -> None:
        error = context.sqlalchemy_exception
        if (
            getattr(self._state, "token", None)
            and isinstance(error, DBAPIError)
            and not isinstance(error, IntegrityError)
        ):
            raise Interrupted(str(context.original_exception)) from context.original_exception
