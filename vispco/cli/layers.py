"""The layer record for a terminal of 80 columns, and as CSV."""

from __future__ import annotations

import textwrap
from typing import Any

from vispco.cli.output import print_table
from vispco.errors import ConfigError
from vispco.registry import suggest

COLUMNS = 40  # characters for the layers of one schedule
KINDS = ("learned", "sensitivity", "gradient")


def layer_rows(record: dict[str, Any], what: str) -> list[dict[str, Any]]:
    """One row per number of a kind; layers, budgets and keep ratios are columns.

    Raises:
        ConfigError: unknown kind.
    """
    if what not in KINDS:
        raise ConfigError(f"unknown --what {what!r}; {suggest(what, list(KINDS))}")
    if what == "sensitivity":
        return [
            {
                "method": table["method"],
                "layer": layer,
                "keep": keep,
                "accuracy": accuracy,
                "lost": lost,
                "saved": saved,
            }
            for table in record["sensitivity"]
            for layer, *cells in zip(table["layers"], table["accuracy"], table["lost"], table["saved"], strict=True)
            for keep, accuracy, lost, saved in zip(table["keeps"], *cells, strict=True)
            if accuracy is not None
        ]
    value = "keep_ratio" if what == "learned" else "worth"
    return [
        {
            "entry": entry["entry"],
            "budget": row["budget"],
            "seeds": row["seeds"],
            "layer": layer,
            value: row[value][layer],
            "low": row["low"][layer],
            "high": row["high"][layer],
        }
        for entry in record[what]
        for row in entry["rows"]
        for layer in range(len(row[value] or []))
    ]


def print_layers(record: dict[str, Any]) -> None:
    """The sentences, the keep ratios that each entry chose, and the cost of a step at each layer."""
    for sentence in record["summary"]:
        print(textwrap.fill(sentence, 80, initial_indent="- ", subsequent_indent="  "))
    entries = [entry for entry in record["learned"] if any(row["keep_ratio"] for row in entry["rows"])]
    if entries:
        every = -(-record["layers"] // COLUMNS)
        shown = "each layer" if every == 1 else f"every {every}th layer"
        print(f"\nkept at {shown} from 0 on: # all, 9 to 1 tenths, . less than 1/20, - nothing\n")
    for entry in entries:
        print_table(
            [
                {
                    entry["entry"]: f"budget {100 * row['budget']:.1f} %",
                    "seeds": row["seeds"],
                    "layers": "".join(map(_shade, row["keep_ratio"][::every])),
                    "held-out, %": _percent(row["accuracy_held_out"]),
                }
                for row in entry["rows"]
                if row["keep_ratio"]
            ],
            decimals=1,
        )
        print()
    for table in record["sensitivity"]:
        keep = f"{100 * table['reference_keep']:.0f} %"
        print(f"one step of {table['method']} that keeps {keep} of the tokens, search split\n")
        column = table["keeps"].index(table["reference_keep"])
        print_table(
            [
                {
                    "layer": layer,
                    "points lost": _percent(lost[column]),
                    "95 % interval": f"{100 * ci[0]:.1f}..{100 * ci[1]:.1f}" if ci else None,
                    "compute saved, %": _percent(saved[column]),
                    "points per compute saved": _percent(per),
                }
                for layer, lost, saved, ci, per in zip(
                    *(table[name] for name in ("layers", "lost", "saved", "lost_ci", "per_compute")), strict=True
                )
            ],
            decimals=1,
        )
        print()


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _shade(ratio: float) -> str:
    """One character for a keep ratio."""
    if ratio <= 0:
        return "-"
    tenths = int(10 * ratio + 0.5)
    return "#" if tenths >= 10 else str(tenths) if tenths else "."
