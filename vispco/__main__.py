"""``python -m vispco``, which is how launchers start it."""

from vispco.cli.main import main

main()
