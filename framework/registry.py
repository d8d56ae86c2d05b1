"""Finds policies: a distribution's entry point ``kvarena.policies`` names a package, and each module in it is read."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from .policy import FAMILIES, Policy
from .schema import ConfigError, build, suggest

GROUP = "kvarena.policies"


@dataclass(frozen=True, slots=True)
class Found:
    """A registered policy and the distribution that ships it."""

    policy: type[Policy]
    distribution: str
    version: str


class Registry:
    """Policies by (family, name), built-in ones and strangers' alike."""

    def __init__(self, found: Iterable[Found]) -> None:
        """Raise ConfigError if two policies share a name; the message names both distributions."""
        self._found: dict[tuple[str, str], Found] = {}
        for new in found:
            key = (new.policy.family, new.policy.name)
            old = self._found.setdefault(key, new)
            if old.policy is not new.policy:
                names = " and ".join(f"{f.distribution} {f.version} ({f.policy.__module__})" for f in (old, new))
                raise ConfigError(
                    f"{key[0]} policy {key[1]!r} is registered twice: by {names}; uninstall or rename one"
                )

    @classmethod
    def discover(cls, group: str = GROUP) -> Registry:
        """Read every installed distribution's policies.

        Raises
        ------
        ConfigError
            If a plugin cannot be imported, or two share a name: a benchmark must not silently lose a contestant.
        """
        return cls(found for point in entry_points(group=group) for found in policies_of(point))

    def names(self, family: str) -> list[str]:
        """The policies of ``family``, sorted."""
        return sorted(name for member, name in self._found if member == family)

    def find(self, family: str, name: str) -> Found:
        """The policy ``name`` of ``family``; ConfigError lists the known ones and the nearest if there is none."""
        if family not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise ConfigError(f"unknown policy family {family!r}; known: {known}{suggest(family, FAMILIES)}")
        if (family, name) not in self._found:
            names = self.names(family)
            known = ", ".join(names) or "none"
            raise ConfigError(f"unknown {family} policy {name!r}; known: {known}{suggest(str(name), names)}")
        return self._found[family, name]

    def build(self, family: str, name: str, knobs: Mapping[str, Any]) -> Policy:
        """An instance of the policy with ``knobs``; ConfigError if it is unknown or refuses a knob."""
        return build(self.find(family, name).policy, knobs, f"{family}={name}")

    def provenance(self, family: str, name: str) -> dict[str, str]:
        """``{name, distribution, version}`` of a policy, for the run's record."""
        found = self.find(family, name)
        return {"name": name, "distribution": found.distribution, "version": found.version}


def policies_of(point: EntryPoint) -> Iterator[Found]:
    """The policies of the package that ``point`` names; ConfigError if one of its modules cannot be imported."""
    distribution, version = (point.dist.name, point.dist.version) if point.dist else ("unknown distribution", "?")
    for module in _modules(point, f"{distribution} {version}"):
        own = [item for item in vars(module).values() if getattr(item, "__module__", None) == module.__name__]
        policies = [item for item in own if isinstance(item, type) and issubclass(item, Policy)]
        # `name` must be set on this very class by `register`, not inherited from a registered one
        yield from (Found(item, distribution, version) for item in policies if item.__dict__.get("name"))


def _modules(point: EntryPoint, owner: str) -> Iterator[ModuleType]:
    name = point.value
    try:
        package = importlib.import_module(name)
        yield package
        for info in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{name}.", onerror=_fail):
            name = info.name
            yield importlib.import_module(name)
    except Exception as error:  # whatever a stranger's module raises
        raise ConfigError(f"policy plugin {owner} is broken: importing {name} failed: {_line(error)}") from error


def _fail(_: str) -> None:
    raise  # noqa: PLE0704 - called by walk_packages in its except block: what a package raises must not be lost


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
