"""Pruning methods, one file each; importing this package registers the built-in ones."""

# ruff: noqa: F401 (modules are imported for what they register)

from vispco.pruning.methods import (
    cdpruner,
    dart,
    divprune,
    evs,
    fastv,
    fitprune,
    hiprune,
    idpruner,
    pixelprune,
    pool,
    prumerge,
    pyramiddrop,
    random,
    scope,
    sparsevlm,
    stride,
    vidcom2,
    visionzip,
    vispruner,
)
from vispco.pruning.methods.base import METHODS, Method, ScoreContext, make_method

__all__ = ["METHODS", "Method", "ScoreContext", "make_method"]
