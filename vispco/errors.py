"""Errors that name what went wrong, with the value; why; and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class VispcoError(Exception):
    """Base of all errors raised on purpose; the command line prints them as one line."""

    exit_code = 1


class UserError(VispcoError, ValueError):
    """The input is wrong and the message says how to mend it (exit code 2)."""

    exit_code = 2


class ConfigError(UserError):
    """A study file or a command-line setting is wrong."""


class ScheduleError(UserError):
    """A schedule cannot be applied as written."""


class ModelError(UserError):
    """A model cannot be loaded, or lacks what a method needs."""


class DataError(UserError):
    """A data set cannot be loaded or has unusable rows."""


class StorageError(UserError):
    """A database cannot be opened, or holds something else than expected."""


class LockedError(VispcoError):
    """Another driver holds the experiment."""


class MeasurementError(VispcoError):
    """The model produced something that cannot be scored, such as NaN logits."""


def shortened(value: Any, most: int = 80) -> str:
    """``repr(value)``, cut where it is long."""
    shown = repr(value)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def listed(found: Sequence[str], most: int = 3) -> str:
    """The first few, and how many more there are."""
    more = len(found) - most
    return "; ".join(found[:most]) + (f"; and {more} more" if more > 0 else "")
