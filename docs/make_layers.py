"""Write what docs/reading.md quotes: ``python docs/make_layers.py [STORAGE]``.

Runs the grid of studies/quickstart.yaml first; what is in the database already is not run again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from marked import fill
from vispco.analysis.comparison import Comparison
from vispco.analysis.layers import layer_record
from vispco.experiment.run import Run
from vispco.problem import Problem
from vispco.storage.store import Store, default_url

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reading.md"


def quoted(summary: list[str]) -> str:
    """The paragraphs about the grid and about what a step costs."""
    told = [part for part in summary if part.startswith(("grid:", "On the search split"))]
    return "\n".join(f"> {part}\n>" for part in told).removesuffix("\n>")


def main() -> None:
    store = Store(sys.argv[1] if len(sys.argv) > 1 else default_url())
    Run(Problem.from_yaml(ROOT / "studies/quickstart.yaml"), store).run(["grid"])
    text = quoted(layer_record(Comparison(store, "quickstart"))["summary"])
    fill(PAGE, {"layers": text})


if __name__ == "__main__":
    main()
