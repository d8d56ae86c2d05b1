"""How much of a context is dropped when it outgrows the window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvarena.policies.truncation.none import NoTruncation
from kvarena.policies.truncation.oldest_half import OldestHalf


@pytest.mark.parametrize(
    ("history", "needed", "dropped"),
    [(3000, 4096, 0), (3000, 4097, 2048), (5000, 6144, 2048), (5000, 6145, 4096), (1000, 4200, 1000), (0, 5000, 0)],
)
def test_half_the_window_goes_until_the_turn_fits(history: int, needed: int, dropped: int) -> None:
    assert OldestHalf().first_kept(history, needed, 4096) == dropped
    assert NoTruncation().first_kept(history, needed, 4096) == 0


@given(history=st.integers(0, 500), new=st.integers(1, 500), limit=st.integers(1, 300), ratio=st.floats(0.01, 1.0))
def test_it_fits_afterwards_or_no_history_is_left(history: int, new: int, limit: int, ratio: float) -> None:
    dropped = OldestHalf(ratio).first_kept(history, history + new, limit)
    assert 0 <= dropped <= history
    assert history + new - dropped <= limit or dropped == history
    assert (dropped == 0) == (history + new <= limit or history == 0)


def test_what_happens_to_stored_kv_is_a_knob() -> None:
    assert OldestHalf().keeps
    assert not OldestHalf(keeps_kv=False).keeps
    assert not OldestHalf().lossless
    with pytest.raises(ValueError, match="ratio is 0"):
        OldestHalf(ratio=0)
