"""Pruning methods, one file each; importing this package registers the built-in ones."""

from vispco.pruning.methods import (
    cdpruner,
    dart,
    divprune,
    fastv,
    fitprune,
    pool,
    prumerge,
    pyramiddrop,
    random,
    sparsevlm,
    stride,
    visionzip,
    vispruner,
)
from vispco.pruning.methods.base import METHODS, Method, ScoreContext, make_method

__all__ = [
    "METHODS",
    "Method",
    "ScoreContext",
    "cdpruner",
    "dart",
    "divprune",
    "fastv",
    "fitprune",
    "make_method",
    "pool",
    "prumerge",
    "pyramiddrop",
    "random",
    "sparsevlm",
    "stride",
    "visionzip",
    "vispruner",
]
