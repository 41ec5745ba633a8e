"""Searches, one file each; importing this package registers the built-in ones."""

# ruff: noqa: F401 (modules are imported for what they register)

from vispco.official import search as official
from vispco.search import grid, samplers, sampling
from vispco.search.base import SEARCHES, Proposal, Search, SearchContext
from vispco.search.base import Options as SearchOptions
from vispco.search.gradient import lagrangian
from vispco.search.recipes import autoprune, dop, fitprune_fit, gsearch, halving, published, vtw

__all__ = ["SEARCHES", "Proposal", "Search", "SearchContext", "SearchOptions"]
