"""Hash mixing of integers (splitmix64), for identities that are known without their content."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_GAMMA = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # shift, multiplier
_LAST_SHIFT = 31
_MASK = (1 << 64) - 1


def mix_int(domain: str, *values: int) -> NDArray[np.int64]:
    """Hash ``values`` within ``domain``: int64 [1], to be the ``base`` of :func:`mix_array`."""
    content = domain + " " + " ".join(map(str, values))
    return np.frombuffer(blake2b(content.encode(), digest_size=8).digest(), np.int64)


def mix_one(base: NDArray[np.int64], value: int) -> int:
    """What :func:`mix_array` gives for one ``value``; arrays cost more than they compute here."""
    z = (value * _GAMMA + int(base.view(np.uint64)[0])) & _MASK
    for shift, multiplier in _ROUNDS:
        z ^= z >> shift
        z = z * multiplier & _MASK
    z ^= z >> _LAST_SHIFT
    return z - (z >> 63 << 64)


def mix_array(base: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Hash each of ``values`` (int64 [n]) with its ``base`` (int64 [n] or [1]): int64 [n], a new array."""
    z = values.astype(np.uint64)
    z *= np.uint64(_GAMMA)
    z += base.view(np.uint64)
    shifted = np.empty_like(z)
    for shift, multiplier in _ROUNDS:
        np.right_shift(z, np.uint64(shift), out=shifted)
        z ^= shifted
        z *= np.uint64(multiplier)
    np.right_shift(z, np.uint64(_LAST_SHIFT), out=shifted)
    z ^= shifted
    return z.view(np.int64)
