"""Copies between a GPU and pinned memory; what can be seen without one, too."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvarena.framework.execution import cuda_copies  # noqa: E402
from kvarena.framework.execution.clocks import SkipIdleClock  # noqa: E402
from kvarena.framework.execution.cuda_copies import CudaCopies  # noqa: E402
from kvarena.framework.execution.host_pool import host_pool  # noqa: E402
from kvarena.framework.execution.page_copies import HostCopies, page_copies  # noqa: E402
from kvarena.framework.execution.torch_links import TorchLinks  # noqa: E402
from kvarena.framework.execution.torch_transfer import LayerGate  # noqa: E402
from kvarena.framework.memory.moves import Move  # noqa: E402
from kvarena.framework.policy import Tier  # noqa: E402

LAYERS = 6
SHAPE = (LAYERS, 2, 2, 4, 8)
LAYER_BYTES = math.prod(SHAPE[1:]) * 4


def slots(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int32)


class FakeStream:
    """Notes what is asked of it."""

    def __init__(self, device: Any) -> None:
        self.log: list[Any] = []

    def record_event(self) -> str:
        self.log.append("event")
        return f"event {len(self.log)}"

    def synchronize(self) -> None:
        self.log.append("synchronized")


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[FakeStream]:
    made: list[FakeStream] = []

    def make(device: Any) -> FakeStream:
        made.append(FakeStream(device))
        return made[-1]

    @contextlib.contextmanager
    def use(stream: FakeStream) -> Iterator[None]:
        stream.log.append("entered")
        yield
        stream.log.append("left")

    monkeypatch.setattr(torch.cuda, "Stream", make)
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(cuda_copies, "PIECE_BYTES", 2 * LAYER_BYTES)
    return made


class TestWithoutAGpu:
    def pools(self) -> tuple[Any, Any]:
        return torch.randn(5, *SHAPE), torch.randn(4, *SHAPE)

    def test_layers_arrive_in_order_with_an_event_for_each_step(self, streams: list[FakeStream]) -> None:
        source, target = self.pools()
        expected, arrived = target.clone(), []
        expected[[3, 0], 1:6] = source[[4, 2], 1:6]
        CudaCopies(torch.device("cuda")).copy(
            (source, target), (slots(4, 2), slots(3, 0)), (1, 5), lambda layers, mark: arrived.append((layers, mark))
        )
        assert torch.equal(target, expected)
        assert arrived == [(2, "event 2"), (2, "event 3"), (1, "event 4")]
        assert streams[0].log == ["entered", "event", "event", "event", "left", "synchronized"]

    def test_whole_pages_go_in_one_piece(self, streams: list[FakeStream]) -> None:
        source, target = self.pools()
        page_copies(torch.device("cuda")).copy((source, target), (slots(1), slots(2)), (0, LAYERS))
        assert torch.equal(target[2], source[1])
        assert streams[0].log == ["entered", "left", "synchronized"]

    def test_a_cpu_copies_by_itself(self) -> None:
        assert isinstance(page_copies(torch.device("cpu")), HostCopies)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnAGpu:
    def test_up_and_down_layer_by_layer(self) -> None:
        device = torch.randn(32, 8, 2, 4, 16, 64, device="cuda")
        host = host_pool(device, 64)
        assert host.is_pinned()
        before, clock = device.cpu(), SkipIdleClock()
        links = TorchLinks(device, host, None, clock)
        pages, there = np.arange(32, dtype=np.int32), np.arange(32, 64, dtype=np.int32)
        keys = pages.astype(np.int64)
        down = links.submit(Move(Tier.DEVICE, Tier.HOST, pages, there, keys, keys, "out"), clock.now())
        down.wait()
        assert torch.equal(host[32:], before)
        device.fill_(math.nan)
        torch.cuda.synchronize()
        up = links.submit(Move(Tier.HOST, Tier.DEVICE, there, pages[::-1].copy(), keys, keys, "in"), clock.now())
        gate, seen = LayerGate(loads=[up]), []
        for layer in range(8):
            gate.attend(layer)
            seen.append(device[:, layer].clone())  # on the compute stream, which waits for the layer
        torch.cuda.synchronize()
        assert torch.equal(torch.stack(seen, 1).cpu(), before.flip(0))
        links.close()

    def test_pinned_memory_is_given_back(self) -> None:
        device = torch.zeros(1, *SHAPE, device="cuda")
        for _ in range(3):
            pool = host_pool(device, 4096)
            assert pool.is_pinned()
            del pool
