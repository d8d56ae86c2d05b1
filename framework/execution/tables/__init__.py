"""Operator times that were measured: their shapes, our own file format, and readers of others' formats."""

from .curves import Curve, Grid
from .loading import load_tables
from .operators import AttentionTables, LinkTimes, OperatorTables

__all__ = ["AttentionTables", "Curve", "Grid", "LinkTimes", "OperatorTables", "load_tables"]
