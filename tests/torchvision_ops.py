"""Lets torchvision be imported where its compiled part does not load (run it by the Python of that environment).

A build for another torch has no compiled operators, and then ``import torchvision`` fails at the two whose shapes it
registers. Their signatures are enough to import it; a ``.pth`` file declares them whenever Python starts. Nothing here
calls them.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

SIGNATURES = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def main() -> None:
    if subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode == 0:
        return
    define = "; ".join(f"ops.define({text!r})" for text in SIGNATURES)
    # Some interpreters read .pth files twice.
    code = f"ops = sys.torchvision_ops = torch.library.Library('torchvision', 'FRAGMENT'); {define}"
    line = f"import sys, torch; hasattr(sys, 'torchvision_ops') or exec({code!r})\n"
    (Path(sysconfig.get_path("purelib")) / "torchvision_ops.pth").write_text(line)
    subprocess.run([sys.executable, "-c", "import torchvision"], check=True)


if __name__ == "__main__":
    main()
