"""What a database may do in mid-run: go away and come back, be busy, be full. Tried again for a bounded time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, TimeoutError

from vispco.errors import StorageError, VispcoError
from vispco.storage.redaction import redact_text

PATIENCE_SECONDS = 60.0
FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0

# SQLSTATE classes and codes of PostgreSQL: connection, rollback to be repeated, shutdown and start, too many clients.
_PASSING_STATES = ("08", "40", "57P01", "57P02", "57P03", "53300")
_PASSING_SQLITE = ("database is locked", "database table is locked", "database schema is locked")
_FULL = ("database or disk is full", "no space left on device", "disk quota exceeded", "could not extend file")

Result = TypeVar("Result")


class Interrupted(Exception):
    """A database error, as its cause, that must not be tried again where it happened."""


# What Python says of values that nobody here has written.
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError, RecursionError)
DATABASE_ERRORS = (SQLAlchemyError, StorageInternalError, Interrupted)
_WRAPPERS = (DBAPIError, StorageInternalError, Interrupted)  # they quote statements and values


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it wraps and what caused it; Optuna hides the database's own error behind its cause."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        part = waiting.pop(0)
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        waiting += [e for e in (getattr(part, "orig", None), part.__cause__) if isinstance(e, BaseException)]


def is_full(error: BaseException) -> bool:
    """Whether the disk, or the space the database may use, is full."""
    return any(
        getattr(part, "sqlstate", None) == "53100" or any(words in str(part).lower() for words in _FULL)
        for part in _chain(error)
        if not isinstance(part, _WRAPPERS)
    )


def is_passing(error: BaseException) -> bool:
    """Whether the same statement may well succeed later: no connection, a restart, another writer, a deadlock."""
    if is_full(error):
        return False
    return any(_may_pass(part) for part in _chain(error))


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, TimeoutError) or getattr(error, "connection_invalidated", False):
        return True
    module, state = type(error).__module__.partition(".")[0], getattr(error, "sqlstate", None)
    if module == "sqlite3":
        return str(error).startswith(_PASSING_SQLITE)
    if state is not None:
        return str(state).startswith(_PASSING_STATES)
    # psycopg without a code: the connection could not be made, or broke
    return module == "psycopg" and type(error).__name__ in ("OperationalError", "InterfaceError", "ConnectionTimeout")


def reason(error: BaseException) -> str:
    """The database's own words in one line, without passwords, statements and values."""
    words = ""
    for part in _chain(error):
        if not isinstance(part, _WRAPPERS):
            words = str(part)
            break
    return redact_text(" ".join(words.split()))[:200] or type(error).__name__


def damaged(shown: str, error: BaseException) -> StorageError:
    """One line for stored values that cannot be read, or fit nothing else that is stored."""
    words = redact_text(" ".join(str(error).split()))[:200]
    return StorageError(
        f"database {shown} holds something unexpected ({type(error).__name__}: {words}); if it was changed by hand, "
        "restore it from a copy, or run into another database (--storage); if not, tell us what vispco --debug shows"
    )


def failure(shown: str, error: BaseException) -> StorageError:
    """One line for a database that failed in mid-run; ``shown`` is its URL without password."""
    if is_full(error):
        return StorageError(
            f"no space left for database {shown} ({reason(error)}); what was finished is safe, "
            "make space and run the same command again"
        )
    return StorageError(
        f"database {shown} failed: {reason(error)}; what was finished is safe, run again when it is back"
    )


class Patience:
    """Does something with a database until it works or ``seconds`` have passed; waits longer after each failure."""

    def __init__(self, shown: str, seconds: float = PATIENCE_SECONDS) -> None:
        self.shown, self.seconds = shown, seconds

    def __call__(self, action: Callable[[], Result]) -> Result:
        """Result of ``action``, which must be safe to repeat when nobody knows whether it was done.

        Raises:
            StorageError: it kept failing, or failed in a way that waiting does not mend, such as a full disk.
        """
        started, wait = time.monotonic(), FIRST_WAIT
        while True:
            try:
                return action()
            except VispcoError:
                raise
            except UNREADABLE as error:
                raise damaged(self.shown, error) from error
            except DATABASE_ERRORS as error:
                waited = time.monotonic() - started
                if not is_passing(error):
                    raise failure(self.shown, error) from error
                if waited + wait > self.seconds:
                    raise StorageError(
                        f"database {self.shown} did not work for {waited:.0f} s: {reason(error)}; "
                        "what was finished is safe, run again when it is back"
                    ) from error
            time.sleep(wait * (0.5 + random.random() / 2))
            wait = min(2 * wait, LONGEST_WAIT)
