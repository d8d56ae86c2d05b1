"""Workspace and report for Weights & Biases, built from code."""

from .command import main

__all__ = ["main"]
