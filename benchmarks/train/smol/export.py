"""Write a run's state as the weights that are shipped: tower, projector and updates in 16 bits, with a record.

The record keeps every examination, and of the training curve one mean in hundred steps.

python -m benchmarks.train.smol.export --run OUT [--state last] [--to vispco/models/smol]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.train.smol.lora import ALPHA, RANK
from vispco.models.smol.assemble import SCALE


def shipped(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by ``tower/``, ``projector/`` and ``updates/``, and the record of the run."""
    assert ALPHA / RANK == SCALE
    tensors = {}
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["record"])
        for name in file.keys():  # noqa: SIM118  (a safetensors file is no mapping)
            part, _, rest = name.partition("/")
            if part == "master" and not rest.startswith("readers"):
                tensors[rest] = file.get_tensor(name).to(torch.bfloat16)
    if record["stage"] != "together":
        raise SystemExit(f"{path} is in stage {record['stage']}; only the last stage has all weights")
    return tensors, record


def thinned(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in curve if "train" not in entry or entry["step"] % 100 == 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--state", default="last")
    parser.add_argument("--to", type=Path, default=Path("vispco/models/smol"))
    options = parser.parse_args()
    tensors, record = shipped(options.run / f"{options.state}.safetensors")
    save_file(tensors, options.to / "weights.safetensors")
    record["curve"] = thinned(record["curve"])
    (options.to / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
