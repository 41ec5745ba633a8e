"""Lets torchvision be imported where its compiled part does not load (run it by the Python of that environment).

A build for another torch has no compiled operators, and then ``import torchvision`` fails at the two whose shapes it
registers. Their signatures are enough to import it; a module that Python loads when it starts declares them as soon as
something asks for torchvision. Nothing here calls them.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

MODULE = '''"""Signatures of two torchvision operators, declared when torchvision is first imported."""

import sys


class Signatures:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torchvision" and Signatures in sys.meta_path:
            sys.meta_path.remove(Signatures)
            import torch

            sys.torchvision_ops = torch.library.Library("torchvision", "FRAGMENT")
            sys.torchvision_ops.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.torchvision_ops.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, Signatures)
'''


def main() -> None:
    asked = [sys.executable, "-c", "import torchvision"]
    if subprocess.run(asked, capture_output=True).returncode == 0:
        return
    site = Path(sysconfig.get_path("purelib"))
    (site / "torchvision_signatures.py").write_text(MODULE)
    (site / "torchvision_signatures.pth").write_text("import torchvision_signatures\n")
    subprocess.run(asked, check=True)


if __name__ == "__main__":
    main()
