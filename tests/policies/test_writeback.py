"""When pages are copied down: thresholds, counts and shares."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kvarena.framework.policy import Tier, Writeback
from kvarena.policies.writeback.ahead_of_time import AheadOfTime
from kvarena.policies.writeback.none import NoWriteback
from kvarena.policies.writeback.on_evict import OnEvict
from kvarena.policies.writeback.save_layerwise import SaveLayerwise
from kvarena.policies.writeback.write_through import WriteThrough

sys.path.insert(0, str(Path(__file__).parent))
from fakes import FakeRun, FakeTier

DEVICE, HOST = Tier.DEVICE, Tier.HOST


@pytest.mark.parametrize(
    ("policy", "device", "host", "eager", "keeps", "yields", "buffer"),
    [
        (NoWriteback(), False, False, [False, False], True, False, None),
        (OnEvict(), True, True, [False, False], True, False, None),
        (AheadOfTime(), True, True, [False, False], True, True, None),
        (AheadOfTime(yields=False), True, True, [False, False], True, False, None),
        (WriteThrough(), False, True, [True, True], True, False, None),
        (WriteThrough(min_uses=2), False, True, [False, True], True, False, None),
        (SaveLayerwise(), True, True, [True, True], False, False, 2048),
        (SaveLayerwise(buffer_tokens=0, keeps_device=True), True, True, [True, True], True, False, 0),
    ],
)
def test_what_each_does(
    policy: Writeback, device: bool, host: bool, eager: list[bool], keeps: bool, yields: bool, buffer: int | None
) -> None:
    run = FakeRun(0)
    assert (policy.on_evict(run, DEVICE), policy.on_evict(run, HOST)) == (device, host)
    assert [policy.eager(FakeRun(0, uses=uses)) for uses in (1, 2)] == eager
    assert (policy.keeps_device, policy.yields, policy.buffer_tokens) == (keeps, yields, buffer)


@pytest.mark.parametrize(
    ("free", "spare", "pages"),
    [(25, 0, 0), (24, 0, 0), (24, 1, 0), (23, 0, 2), (0, 0, 25), (0, 25, 0), (3, 10, 12), (60, 0, 0)],
)
def test_pensieve_copies_below_a_quarter_free(free: int, spare: int, pages: int) -> None:
    """Copied pages count as free; pages of 16 tokens go two by two (chunks of 32)."""
    device = FakeTier(DEVICE, 100, free, spare, capacity_below=50, page_size=16)
    assert AheadOfTime().ahead(device) == pages


def test_a_device_smaller_than_a_chunk_is_copied_ahead_too() -> None:
    assert AheadOfTime().ahead(FakeTier(DEVICE, 4, 0, 0, capacity_below=50, page_size=1)) == 1


def test_only_the_device_is_copied_ahead_and_only_where_something_is_below() -> None:
    assert AheadOfTime().ahead(FakeTier(DEVICE, 100, capacity_below=0)) == 0
    assert AheadOfTime().ahead(FakeTier(HOST, 100, capacity_below=50)) == 0
    for policy in (OnEvict(), WriteThrough(), NoWriteback()):
        assert policy.ahead(FakeTier(DEVICE, 100, capacity_below=50)) == 0


@pytest.mark.parametrize(("free", "spare", "pages"), [(10, 0, 0), (0, 0, 10), (4, 2, 4), (0, 11, 0)])
def test_cachedattention_keeps_a_share_of_the_host_free(free: int, spare: int, pages: int) -> None:
    assert SaveLayerwise().ahead(FakeTier(HOST, 100, free, spare, capacity_below=50)) == pages
    assert SaveLayerwise().ahead(FakeTier(HOST, 100, free, spare, capacity_below=0)) == 0
    assert SaveLayerwise().ahead(FakeTier(DEVICE, 100, free, spare, capacity_below=50)) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AheadOfTime(threshold=1.0), "threshold is 1.0"),
        (lambda: AheadOfTime(chunk_tokens=0), "chunk_tokens is 0"),
        (lambda: WriteThrough(min_uses=0), "min_uses is 0"),
        (lambda: SaveLayerwise(buffer_tokens=-1), "buffer_tokens is -1"),
        (lambda: SaveLayerwise(free_share=-0.1), "free_share is -0.1"),
    ],
)
def test_bad_knobs_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
