"""Searches, one file each; importing this package registers the built-in ones."""

from vispco.search import grid, lagrangian, official, sampling
from vispco.search.base import SEARCHES, Search, SearchContext

__all__ = ["SEARCHES", "Search", "SearchContext", "grid", "lagrangian", "official", "sampling"]
