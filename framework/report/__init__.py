"""Run folders in; tables, files and figures out."""

from .comparison import Comparison, compare
from .runs import Run, RunError, load_run

__all__ = ["Comparison", "Run", "RunError", "compare", "load_run"]
