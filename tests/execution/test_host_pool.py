"""The host tier's memory."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kvarena.framework.execution.host_pool import host_pool  # noqa: E402

SHAPE = (4, 2, 2, 3, 4)


class TestHostPool:
    def test_is_like_the_devices(self) -> None:
        device = torch.ones(3, *SHAPE, dtype=torch.bfloat16)
        pool = host_pool(device, 8)
        assert pool.shape == (8, *SHAPE) and pool.dtype == torch.bfloat16 and pool.is_contiguous()
        assert not pool.any()

    def test_takes_memory_only_when_it_is_written(self) -> None:
        def resident() -> int:
            with open("/proc/self/statm", encoding="ascii") as file:
                return int(file.read().split()[1]) * 4096

        before = resident()
        pool = host_pool(torch.ones(1, 4, 2, 8, 16, 64), 4096)  # 1 GiB
        assert pool.nbytes == 2**30 and resident() - before < 2**26

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="host pool has 0 pages"):
            host_pool(torch.ones(1, *SHAPE), 0)
        with pytest.raises(ValueError, match="takes .* bytes of memory"):
            host_pool(torch.ones(1, *SHAPE), 2**50)
