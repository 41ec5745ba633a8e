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
                    entry["entry"]: f"budget {row['budget']:.3f}",
                    "seeds": row["seeds"],
                    "layers": "".join(map(_shade, row["keep_ratio"][::every])),
                    "held-out": row["accuracy_held_out"],
                }
                for row in entry["rows"]
                if row["keep_ratio"]
            ]
        )
        print()
    for table in record["sensitivity"]:
        print(f"one step of {table['method']}, search split; at keep {table['reference_keep']:g}\n")
        column = table["keeps"].index(table["reference_keep"])
        print_table(
            [
                {
                    "layer": layer,
                    "accuracy lost": lost[column],
                    "95 % interval": f"{ci[0]:.3f}..{ci[1]:.3f}" if ci else None,
                    "compute saved": saved[column],
                    "lost per saved, all keeps": per,
                }
                for layer, lost, saved, ci, per in zip(
                    *(table[name] for name in ("layers", "lost", "saved", "lost_ci", "per_compute")), strict=True
                )
            ]
        )
        print()


def _shade(ratio: float) -> str:
    """One character for a keep ratio."""
    if ratio <= 0:
        return "-"
    tenths = int(10 * ratio + 0.5)
    return "#" if tenths >= 10 else str(tenths) if tenths else "."
