"""What the store adds to Optuna's own transactions: the lock's fence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import optuna
from sqlalchemy import event

from vispco.storage.lock import Held


def fence_sessions(storage: optuna.storages.RDBStorage, held: Callable[[], Iterable[Held]]) -> None:
    """Fence every transaction of ``storage`` that writes by the locks that ``held`` gives."""

    def before_flush(session: Any, *_: Any) -> None:
        if not (session.new or session.dirty or session.deleted):
            return
        transaction = session.get_transaction()
        if session.info.get("seen") is transaction:
            return
        for lock in held():
            lock.fence(session.connection())
        session.info["seen"] = transaction

    event.listen(storage.scoped_session.session_factory, "before_flush", before_flush)
