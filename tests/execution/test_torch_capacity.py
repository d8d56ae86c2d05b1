"""Device pages from a config or from the memory."""

from __future__ import annotations

import pytest

from kvarena.framework.execution.capacity import device_pages, free_bytes


def test_null_takes_what_the_bytes_hold():
    assert device_pages(None, 16, 100, 16_000) == 10
    assert device_pages(None, 16, 100, 17_599) == 10


def test_tokens_round_down_to_pages():
    assert device_pages(160, 16, 100, 16_000) == 10
    assert device_pages(175, 16, 100, 16_000) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 16, 100, 1_599), "1599 bytes are free .* one page takes 1600"),
        ((None, 16, 100, -5), "0 bytes are free"),
        ((15, 16, 100, 16_000), "device_tokens is 15, expected at least one page of 16"),
        ((0, 16, 100, 16_000), "device_tokens is 0"),
        ((176, 16, 100, 16_000), "take 17600 bytes, 16000 are free; at most 160 tokens"),
        ((None, 0, 100, 16_000), "page_size is 0"),
        ((None, 16, 0, 16_000), "kv_bytes_per_token is 0"),
    ],
)
def test_bad_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        device_pages(*arguments)


def test_a_cpu_gives_half_of_its_free_memory():
    assert 2**20 < free_bytes("cpu") < 2**50
