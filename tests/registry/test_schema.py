"""A dataclass is the schema of its YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest

from kvarena.framework.schema import ConfigError, build, suggest


@dataclass(frozen=True)
class Slo:
    ttft_s: float = 1.0
    tpot_s: float | None = None


@dataclass
class Knobs:
    family: ClassVar[str] = "x"
    capacity: int = 4
    share: float = 0.5
    order: Literal["lru", "fifo"] = "lru"
    limit: int | None = None
    mixed: int | float | str = 1
    sizes: tuple[int, ...] = (1, 2)
    table: dict[str, float] = field(default_factory=dict)
    slo: Slo | None = field(default_factory=Slo)
    on: bool = False

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ValueError(f"capacity is {self.capacity}, must be >= 1")


@dataclass
class Needy:
    path: str


def test_defaults_and_coercions() -> None:
    assert build(Knobs, {}, "here") == Knobs()
    built = build(
        Knobs, {"capacity": 1e3, "share": 1, "table": {"a": 2}, "sizes": [3, 4], "slo": {"ttft_s": 2}}, "here"
    )
    assert built.capacity == 1000 and isinstance(built.capacity, int)
    assert isinstance(built.share, float) and built.table == {"a": 2.0} and built.sizes == (3, 4)
    assert built.slo == Slo(ttft_s=2.0)
    assert build(Knobs, {"slo": None, "limit": None}, "here").slo is None
    assert build(Knobs, {"limit": 3}, "here").limit == 3


@pytest.mark.parametrize("value", [1, 1.5, "a"])
def test_a_union_keeps_the_exact_type(value: object) -> None:
    mixed = build(Knobs, {"mixed": value}, "here").mixed
    assert mixed == value and type(mixed) is type(value)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"capcity": 1}, ["eviction=x", "'capcity'", "share, order", "did you mean 'capacity'"]),
        ({"capacity": "many"}, ["capacity is 'many' (str)", "expected int"]),
        ({"capacity": 1.5}, ["capacity is 1.5 (float)", "expected int"]),
        ({"capacity": True}, ["capacity is True (bool)", "expected int"]),
        ({"capacity": None}, ["capacity is null", "expected int"]),
        ({"share": False}, ["share is False (bool)", "expected float"]),
        ({"order": "lur"}, ["order is 'lur'", "one of 'lru', 'fifo'", "did you mean 'lru'"]),
        ({"limit": "x"}, ["limit is 'x' (str)", "expected int or null"]),
        ({"on": 1}, ["on is 1 (int)", "expected bool"]),
        ({"slo": {"ttft": 1}}, ["slo", "'ttft'", "did you mean 'ttft_s'"]),
        ({"slo": 3}, ["slo is 3 (int)", "a mapping or null"]),
        ({"sizes": [1, "b"]}, ["sizes[1] is 'b'", "expected int"]),
        ({"sizes": "12"}, ["sizes is '12'"]),
        ({"table": {"a": "b"}}, ["table.a is 'b'", "expected float"]),
        ({"capacity": 0}, ["eviction=x: capacity is 0, must be >= 1"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(knobs: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        build(Knobs, knobs, "eviction=x")
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_missing_knob_and_a_class_without_knobs() -> None:
    with pytest.raises(ConfigError, match="x: path must be given"):
        build(Needy, {}, "x")
    with pytest.raises(ConfigError, match="it has no knobs"):
        build(object, {"a": 1}, "x")


def test_suggest() -> None:
    assert suggest("evicton", ["eviction", "routing"]) == "; did you mean 'eviction'?"
    assert suggest("zzz", ["eviction"]) == ""
