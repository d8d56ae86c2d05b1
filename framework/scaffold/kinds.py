"""What there is to begin with: one kind of policy per family, two of truncation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

IN_SECONDS = "backend=simulated model=llama-3-8b hardware=h100 memory.device_tokens=16384"


@dataclass(frozen=True, slots=True)
class Kind:
    """A starting point.

    Attributes
    ----------
    family: of the policy. contract: the class in ``kvarena.framework.policy`` that it derives from.
    folder: of its templates. builtin: the policy that it is compared with, in its test and in a sweep.
    tested: what its test does, in words. given: arguments without which it would have nothing to decide.
    """

    family: str
    contract: str
    folder: str
    builtin: str
    tested: str
    given: str

    def choice(self, name: str) -> str:
        """The arguments of a run with the policy ``name``."""
        return f"{self.given} {self.family}={name}"

    def sweep(self, name: str) -> str:
        """The arguments of a sweep over it and the built-in one."""
        return f"{self.given} {self.family}={self.builtin},{name}"


LOSSLESS = "the tokens of no cache on a real model"
KINDS: Mapping[str, Kind] = {
    "eviction": Kind(
        *("eviction", "ScoredEviction", "eviction", "lru"),
        f"a trace against the built-in LRU, step by step; {LOSSLESS}",
        IN_SECONDS,
    ),
    "writeback": Kind(
        *("writeback", "Writeback", "writeback", "on_evict"),
        f"a run against the built-in on_evict, copy by copy; {LOSSLESS}",
        f"{IN_SECONDS} system=pensieve",
    ),
    "prefetch": Kind(
        *("prefetch", "Prefetch", "prefetch", "prefix"),
        f"a run against the built-in prefix cache, request by request; {LOSSLESS}",
        f"{IN_SECONDS} system=vllm_offload",
    ),
    "truncation": Kind(
        *("truncation", "ScoredTruncation", "truncation", "knorm"),
        "which tokens stay, by hand; against the built-in knorm, decision by decision, on a real model",
        "system=pensieve workload.limit=4",
    ),
    "truncation-context": Kind(
        *("truncation", "Truncation", "truncation_context", "oldest_half_recompute"),
        "that what is cut fits; against the built-in oldest_half; long chats on a real model",
        "system=pensieve model.max_positions=1024 workload.limit=4",
    ),
    "compression": Kind(
        *("compression", "Compression", "compression", "none"),
        "the packed form by hand: rounding, joining, taking, bytes; chats on a real model",
        "system=pensieve workload.limit=4",
    ),
    "scheduling": Kind(
        *("scheduling", "Scheduling", "scheduling", "chunked"),
        f"a run against the built-in chunked, iteration by iteration; {LOSSLESS}",
        IN_SECONDS,
    ),
    "routing": Kind(
        *("routing", "Routing", "routing", "single"),
        f"that a conversation stays and all are spread; {LOSSLESS}",
        IN_SECONDS,
    ),
}
