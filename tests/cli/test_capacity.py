"""How many pages each tier gets, and what a page's format says."""

from __future__ import annotations

import pytest

from kvarena.framework.execution import capacity
from kvarena.framework.execution.capacity import Room, host_room, lower_pages


def test_null_takes_what_the_bytes_hold_and_0_is_no_tier() -> None:
    assert lower_pages("host", None, 16, 100, Room(16_000)) == 10
    assert lower_pages("host", None, 16, 100, Room(1_599)) == 0
    assert lower_pages("host", 0, 16, 100, Room(16_000)) == 0


def test_tokens_round_down_to_pages_and_may_take_all_there_is() -> None:
    assert lower_pages("host", 175, 16, 100, Room(0, 16_000)) == 10
    assert lower_pages("disk", 1 << 40, 16, 100, Room(0)) == 1 << 36


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (15, "memory.host_tokens is 15, expected 0 or at least one page of 16 tokens"),
        (176, "memory.host_tokens is 176: its K/V take 17600 bytes, 16000 are there; at most 160 tokens fit"),
    ],
)
def test_bad_sizes_are_refused(tokens: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lower_pages("host", tokens, 16, 100, Room(0, 16_000))


def test_a_host_tier_is_a_quarter_of_the_free_memory_beside_the_device_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "_free_host_bytes", lambda: 4000)
    assert host_room("cpu", 1000) == Room(1000, 3000)
    assert host_room("cpu", 3500) == Room(500, 500)
    assert host_room("cuda:0", 3500) == Room(1000, 4000)
