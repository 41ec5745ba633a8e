"""The commands, one file a verb; the help lists them in this order."""

# ruff: noqa: F401, I001
from vispco.cli.verbs import (
    run,
    listing,
    compare,
    layers,
    report,
    plot,
    evaluate,
    choose,
    profile,
    export,
    serve,
    tokens,
    databases,
    dashboard,
    check,
)
