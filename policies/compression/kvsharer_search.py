"""KVSharer's search for layers that can share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...framework.policy import LayerProbe, checked_sharing

Ids = NDArray[np.int64]
Pair = tuple[int, int]  # earlier, later layer


def find_sharing(probe: LayerProbe, ids: Ids, wanted: int, similarity: float) -> dict[int, int]:
    """At most ``wanted`` layers that can use an earlier one's K/V, each with that; see ``KVSharer``.

    A forward pass over ``ids`` for every pair that is tried.
    """
    original, found = probe.last_hidden(ids, {}), dict[int, int]()
    for earlier, later in ranked_pairs(probe.mean_cache(ids)):
        if len(found) == wanted:
            break
        if later in found or probe.kinds[earlier] != probe.kinds[later]:
            continue
        tried = checked_sharing({**found, later: earlier})
        if mean_cosine(probe.last_hidden(ids, tried), original) > similarity:
            found = tried
    return found


def ranked_pairs(cache: NDArray[np.float32]) -> list[Pair]:
    """All pairs of layers by the distance of their mean K/V, [L, 2, n], greatest first; equal ones by layer."""
    pairs = [(earlier, later) for later in range(len(cache)) for earlier in range(later)]
    apart = {pair: _distance(cache[pair[0]], cache[pair[1]]) for pair in pairs}
    return sorted(pairs, key=lambda pair: (-apart[pair], pair))


def _distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The mean of the keys' Euclidean distance and the values'; [2, n]."""
    return float(np.linalg.norm(one - other, axis=-1).mean())


def mean_cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Of vectors [..., n], the mean over all; a vector of zeros is like none."""
    norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return float(((one * other).sum(axis=-1) / np.maximum(norms, np.finfo(np.float32).tiny)).mean())
