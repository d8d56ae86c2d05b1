"""What makes two sweeps the same: the jobs, the files that they read, and the code that runs them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Words = tuple[str, ...]
CODE_GROUPS = ("kvarena.policies",)
OWN_CODE = ("kvarena.framework", "kvarena.kernels")
SOURCES = (".py", ".cpp", ".h")
NOT_RUN = ("resume", "runs")  # keys that say where and how a sweep runs, not what it runs


def identity(words: Iterable[str]) -> Words:
    """A job's overrides in an order of their own, without those that change nothing that it computes."""
    kept = (word for word in words if word.split("=")[0] not in NOT_RUN and not word.startswith(("hydra.", "hydra/")))
    return tuple(sorted(kept))


def sweep_key(jobs: Sequence[tuple[Iterable[str], Mapping[str, Any]]], extra: object = None) -> str:
    """A digest of the jobs' overrides and configs, in any order, and of the size and time of the files they name."""
    parts = []
    for words, config in jobs:
        own = {name: value for name, value in config.items() if name not in NOT_RUN}
        parts.append([identity(words), own, sorted(_stamps(own))])
    text = json.dumps([sorted(map(_text, parts)), extra], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _text(part: object) -> str:
    return json.dumps(part, sort_keys=True, default=str)


def _stamps(node: Any) -> Iterator[tuple[str, int, int]]:
    """(path, bytes, time of the last change) of each file that a value names."""
    if isinstance(node, Mapping):
        for value in node.values():
            yield from _stamps(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _stamps(value)
    elif isinstance(node, str) and 0 < len(node) < 4096 and os.path.isfile(path := os.path.expanduser(node)):
        state = os.stat(path)
        yield node, state.st_size, state.st_mtime_ns


def code_version() -> str:
    """The version of kvarena, and a digest of all sources that a run may use: the engine's and every policy's."""
    packages = {*OWN_CODE, *(point.value for group in CODE_GROUPS for point in entry_points(group=group))}
    digest = hashlib.sha256()
    for package in sorted(packages):
        for root in _roots(package):
            for path in sorted(path for path in root.rglob("*") if path.suffix in SOURCES):
                digest.update(f"{package}/{path.relative_to(root)}".encode())
                digest.update(path.read_bytes())
    return f"{version('kvarena')}-{digest.hexdigest()[:12]}"


def _roots(package: str) -> list[Path]:
    """The folders of ``package``; none if it is broken, which the registry reports."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return []
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
