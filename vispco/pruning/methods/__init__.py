"""Pruning methods, one file each; importing this package registers the built-in ones."""

from vispco.pruning.methods import fastv, fitprune, pool, random, sparsevlm, stride
from vispco.pruning.methods.base import METHODS, Method, ScoreContext, make_method

__all__ = [
    "METHODS",
    "Method",
    "ScoreContext",
    "fastv",
    "fitprune",
    "make_method",
    "pool",
    "random",
    "sparsevlm",
    "stride",
]
