"""Measure this machine for the simulator: operator tables, a hardware file, and how sure they are."""
