"""What every policy is: a dataclass of knobs with a family and a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import IntEnum
from typing import Any, ClassVar, TypeVar

FAMILIES = ("eviction", "writeback", "prefetch", "truncation", "compression", "scheduling", "routing")


class Tier(IntEnum):
    """Where a page can be resident, nearest to the compute first."""

    DEVICE = 0
    HOST = 1
    DISK = 2
    REMOTE = 3


class Policy:
    """Base of every policy. ``family`` and ``name`` are set by :func:`register`.

    ``oracle``: True lets the policy see the future; it is marked in every table and never ranked.
    ``lossless``: False if the policy may change the tokens a model produces.
    """

    family: ClassVar[str] = ""
    name: ClassVar[str] = ""
    oracle: ClassVar[bool] = False
    lossless: ClassVar[bool] = True


P = TypeVar("P", bound=type[Policy])


def register(family: str, name: str) -> Callable[[P], P]:
    """Mark a dataclass as the policy ``name`` of ``family``. The registry finds marked classes; nothing global changes.

    Raises
    ------
    ValueError
        If ``family`` is not one of :data:`FAMILIES` or ``name`` is not a lower-case identifier.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown policy family {family!r}; the families are {', '.join(FAMILIES)}")
    if not (name.isidentifier() and name == name.lower()):
        raise ValueError(f"policy name {name!r} must be a lower-case identifier")

    def mark(cls: P) -> P:
        cls.family, cls.name = family, name
        return cls

    return mark


def knobs(policy: Policy) -> dict[str, Any]:
    """The knobs of ``policy`` by name, in order: the fields that its YAML sets."""
    return {f.name: getattr(policy, f.name) for f in fields(policy) if f.init} if is_dataclass(policy) else {}


def require_at_least(policy: Policy, minimum: int, *names: str) -> None:
    """Raise ValueError unless the knobs ``names`` of ``policy`` are at least ``minimum``."""
    for name in names:
        if getattr(policy, name) < minimum:
            raise ValueError(f"{name} is {getattr(policy, name)}; it must be at least {minimum}")


def require_share(policy: Policy, *names: str) -> None:
    """Raise ValueError unless the knobs ``names`` of ``policy`` are at least 0 and below 1."""
    for name in names:
        if not 0 <= getattr(policy, name) < 1:
            raise ValueError(f"{name} is {getattr(policy, name)}; it must be at least 0 and below 1")
