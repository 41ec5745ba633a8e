"""Searches, one file each; importing this package registers the built-in ones."""

from vispco.search import (
    dop,
    fitprune_fit,
    grid,
    gsearch,
    halving,
    lagrangian,
    official,
    optuna_samplers,
    published,
    sampling,
    vtw,
)
from vispco.search.base import SEARCHES, Proposal, Search, SearchContext
from vispco.search.base import Options as SearchOptions

__all__ = [
    "SEARCHES",
    "Proposal",
    "Search",
    "SearchContext",
    "SearchOptions",
    "dop",
    "fitprune_fit",
    "grid",
    "gsearch",
    "halving",
    "lagrangian",
    "official",
    "optuna_samplers",
    "published",
    "sampling",
    "vtw",
]
