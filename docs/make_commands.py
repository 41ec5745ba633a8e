"""Write docs/commands.md from what ``--help`` says: ``python docs/make_commands.py``."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent / "commands.md"
HEAD = """# Commands

What `vispco --help` and `vispco COMMAND --help` print; written by `python docs/make_commands.py`. Every error is one
line that begins with `vispco:`. The exit code is then 2 for what you can mend and 1 for what went wrong; with `--debug`
before the command the traceback is shown. Every command takes `--plugin FILE`, a Python file that registers
[methods, tasks, ... of your own](extending.md).
"""


def page() -> str:
    """By typer's own writer of such pages; its headings are one level lower here."""
    told = subprocess.run(
        [sys.executable, "-m", "typer", "vispco.cli.main", "utils", "docs", "--name", "vispco"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    _, _, commands = told.partition("\n## ")
    commands = re.sub(r"^\* `--help`: Show this message and exit\.\n", "", "## " + commands, flags=re.MULTILINE)
    return f"{HEAD}\n{commands.replace('```console', '```text').strip()}\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
