"""Cache decisions only: a workload's pages put to an eviction policy, without model, hardware or time."""

from .caches import blocks_by_hooks, is_fast, prefixes_by_hooks, replay_blocks, replay_prefixes

__all__ = ["blocks_by_hooks", "is_fast", "prefixes_by_hooks", "replay_blocks", "replay_prefixes"]
