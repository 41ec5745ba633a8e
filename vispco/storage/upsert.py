"""Insert or replace, insert or leave: one statement for many rows, safe beside other writers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


def insert_missing(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> None:
    """Insert the rows whose ``keys`` are not there yet; what is there stays."""
    if rows:
        connection.execute(_insert(connection, table).on_conflict_do_nothing(index_elements=keys), list(rows))


def upsert(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Insert the rows; where ``keys`` are there already, replace the other columns."""
    if rows:
        insert = _insert(connection, table)
        others = {name: insert.excluded[name] for name in rows[0] if name not in keys}
        connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=others), list(rows))


def _insert(connection: Connection, table: Table) -> Any:
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
