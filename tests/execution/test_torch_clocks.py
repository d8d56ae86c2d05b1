"""Virtual, skipping and wall clocks."""

from __future__ import annotations

import time

import pytest

from kvarena.framework.execution.clocks import SkipIdleClock, VirtualClock, WallClock


def test_virtual_time_moves_only_when_told():
    clock = VirtualClock()
    assert clock.ends(1.0, 0.5) == 1.5
    assert clock.now() == 0.0
    clock.wait_until(1.5)
    clock.wait_until(1.0)  # passed already
    assert clock.now() == 1.5
    clock.wait_until(9.0)
    assert clock.now() == 9.0
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="duration_s"):
            clock.ends(0.0, bad)


def test_skip_idle_jumps_over_waits_and_runs_with_real_time():
    clock, wall = SkipIdleClock(), time.perf_counter()
    assert clock.now() < 0.5
    clock.wait_until(3600.0)
    assert 3600.0 <= clock.now() < 3601.0
    assert time.perf_counter() - wall < 1.0
    clock.wait_until(10.0)  # passed already
    before = clock.now()
    time.sleep(0.01)
    assert 0.01 <= clock.ends(before, 5.0) - before < 4.0  # real time has moved by itself


def test_wall_clock_sleeps():
    clock = WallClock()
    clock.now()
    start = time.perf_counter()
    clock.wait_until(0.05)
    assert 0.04 < time.perf_counter() - start < 1.0
    assert clock.now() >= 0.05


@pytest.mark.parametrize("kind", [SkipIdleClock, WallClock])
def test_real_clocks_start_when_first_asked(kind):
    clock = kind()
    time.sleep(0.05)
    assert clock.now() < 0.04
