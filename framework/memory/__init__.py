"""Where pages are: the store, its tiers and its tree of runs."""

from .lease import Lease, Match
from .run import Run
from .store import Keep, OutOfPages, PageStore

__all__ = ["Keep", "Lease", "Match", "OutOfPages", "PageStore", "Run"]
