"""A policy in a distribution of its own, ready to install, run and change: ``kvarena-new-policy``."""

from .command import main
from .kinds import KINDS, Kind
from .names import Names
from .writing import write_distribution

__all__ = ["KINDS", "Kind", "Names", "main", "write_distribution"]
