"""Pruning methods, one file each; importing this package registers the built-in ones."""

from vispco.pruning.methods import dart, divprune, fastv, fitprune, pool, pyramiddrop, random, sparsevlm, stride
from vispco.pruning.methods.base import METHODS, Method, ScoreContext, make_method

__all__ = [
    "METHODS",
    "Method",
    "ScoreContext",
    "dart",
    "divprune",
    "fastv",
    "fitprune",
    "make_method",
    "pool",
    "pyramiddrop",
    "random",
    "sparsevlm",
    "stride",
]
