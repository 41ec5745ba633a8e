"""Searches, one file each; importing this package registers the built-in ones."""

from vispco.search import (
    dop,
    fitprune_fit,
    grid,
    gsearch,
    lagrangian,
    official,
    optuna_samplers,
    published,
    sampling,
    vtw,
)
from vispco.search.base import SEARCHES, Search, SearchContext

__all__ = [
    "SEARCHES",
    "Search",
    "SearchContext",
    "dop",
    "fitprune_fit",
    "grid",
    "gsearch",
    "lagrangian",
    "official",
    "optuna_samplers",
    "published",
    "sampling",
    "vtw",
]
