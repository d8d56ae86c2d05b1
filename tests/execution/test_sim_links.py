"""The simulated links fill the links' contract: bytes, routes and layers of moves."""

import math
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from kvarena.framework.execution.cost import CostModel
from kvarena.framework.execution.hardware import Hardware
from kvarena.framework.execution.links import SimulatedLinks
from kvarena.framework.execution.shapes import model_shape
from kvarena.framework.execution.transfers import Links
from kvarena.framework.memory.moves import Move
from kvarena.framework.policy import Tier
from kvarena.framework.schema import build

DEVICE, HOST, DISK = Tier.DEVICE, Tier.HOST, Tier.DISK
LAYERS, PAGE_BYTES = 4, 40
PAIRS = [(a, b) for a in (DEVICE, HOST, DISK) for b in (DEVICE, HOST, DISK) if a != b]


def load(group, name):
    return OmegaConf.to_container(OmegaConf.load(str(files("kvarena.conf") / group / f"{name}.yaml")))


H100 = build(Hardware, load("hardware", "h100"), "")
# 100 bytes a second each way, disks 50 to read and 25 to write, no latency.
SLOW = replace(
    *(H100,),
    host_link_bytes_per_s=100.0,
    host_link_latency_s=0.0,
    disk_read_bytes_per_s=50.0,
    disk_write_bytes_per_s=25.0,
    disk_latency_s=0.0,
)


def links():
    return SimulatedLinks(SLOW, PAGE_BYTES, LAYERS)


def move(source, target, pages=5, **options):
    slots, keys = np.arange(pages, dtype=np.int32), np.arange(pages, dtype=np.int64)
    return Move(source, target, slots, slots, keys, keys, "test", **options)


def test_it_is_a_backends_links():
    backend: Links = links()
    assert backend.poll(0.0) == [] and backend.next_end_s(0.0) == math.inf
    backend.wait()
    assert backend.problems() == []
    backend.close()


@pytest.mark.parametrize(
    ("source", "target", "end_s", "parts"),
    [
        (HOST, DEVICE, 2.0, [0.5, 1.0, 1.5, 2.0]),
        (DEVICE, HOST, 2.0, [2.0]),
        (DISK, HOST, 4.0, [4.0]),
        (HOST, DISK, 8.0, [8.0]),
        (DISK, DEVICE, 6.0, [4.5, 5.0, 5.5, 6.0]),
        (DEVICE, DISK, 10.0, [10.0]),
    ],
)
def test_a_move_takes_its_bytes_over_each_link_and_arrives_by_layers_on_the_device(source, target, end_s, parts):
    backend = links()
    transfer = backend.submit(move(source, target), 0.0)
    assert (transfer.num_bytes, transfer.layers) == (200, len(parts))
    assert backend.poll(100.0) == [transfer]
    assert transfer.end_s == pytest.approx(end_s)
    assert transfer.layer_ends_s == pytest.approx(parts)
    assert not len(transfer.failed) and not transfer.cancelled


def test_a_range_of_layers_is_its_share_of_the_bytes():
    backend = links()
    front = backend.submit(move(HOST, DEVICE, layers=(0, 3)), 0.0)
    back = backend.submit(move(HOST, DEVICE, layers=(3, 1)), 0.0)
    assert (front.num_bytes, back.num_bytes) == (150, 50)
    assert backend.poll(2.0) == [front, back]
    assert front.layer_ends_s == pytest.approx([0.5, 1.0, 1.5])
    assert back.layer_ends_s == [2.0]


@given(
    st.lists(
        st.tuples(st.sampled_from(PAIRS), st.integers(0, 9), st.booleans(), st.booleans(), st.floats(0, 3)),
        min_size=1,
        max_size=20,
    )
)
def test_no_byte_is_lost_and_everything_ends(plan):
    backend, now_s, sent = links(), 0.0, []
    for (source, target), pages, urgent, yields, gap_s in plan:
        now_s += gap_s
        after = sent[-2:]
        sent.append(backend.submit(move(source, target, pages, urgent=urgent, yields=yields), now_s, after))
        backend.check()
    ended = []
    while (event_s := backend.next_end_s(now_s)) < math.inf:
        assert event_s >= now_s
        now_s = event_s
        ended += backend.poll(now_s)
        backend.check()
    assert sorted(map(id, ended)) == sorted(map(id, sent))
    assert sum(t.num_bytes for t in ended) == PAGE_BYTES * sum(pages for _, pages, *_ in plan)


@pytest.mark.parametrize("hardware", ["h100", "h200", "a100-80g", "4xa100-80g"])
def test_both_directions_at_once_lose_18_to_20_percent_each(hardware):
    machine = build(Hardware, load("hardware", hardware), "")
    alone_s, shared_s = [], []
    for directions, times in ((1, alone_s), (2, shared_s)):
        backend = SimulatedLinks(machine, 1 << 20, 32)
        way = [(HOST, DEVICE), (DEVICE, HOST)][:directions]
        times += [backend.submit(move(source, target, 4096), 0.0) for source, target in way]
        backend.settle(times, 0.0)
    for transfer in shared_s:
        assert 0.18 <= 1 - alone_s[0].end_s / transfer.end_s <= 0.20


@pytest.mark.parametrize("tier", [HOST, DISK])
def test_a_load_over_idle_links_takes_what_policies_are_told(tier):
    shape = model_shape(load("model", "llama-3-8b"))
    costs = CostModel(shape, H100, page_size=16)
    backend = SimulatedLinks(H100, 16 * shape.kv_bytes_per_token, shape.num_layers)
    transfer = backend.submit(move(tier, DEVICE, 100), 0.0)
    backend.settle([transfer], 0.0)
    assert transfer.end_s == pytest.approx(costs.load_s(1600, tier), rel=1e-12)


def test_waiting_swap_outs_cost_swap_ins_nothing():
    backend = links()
    load_ = backend.submit(move(HOST, DEVICE, urgent=True), 0.0)
    out = backend.submit(move(DEVICE, HOST, yields=True), 0.0)
    backend.settle([out], 0.0)
    assert (load_.end_s, out.start_s, out.end_s) == (2.0, 2.0, 4.0)


def test_a_move_that_is_called_off_is_polled_as_ended():
    backend = links()
    first, second = backend.submit(move(DISK, HOST), 0.0), backend.submit(move(DISK, HOST), 0.0)
    assert backend.poll(1.0) == []
    assert backend.cancel(second) and not backend.cancel(first)
    assert backend.poll(1.0) == [second] and second.cancelled
    assert backend.poll(4.0) == [first] and not first.cancelled


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SimulatedLinks(SLOW, 0, 4), "page_bytes=0"),
        (lambda: SimulatedLinks(SLOW, 4, 0), "num_layers=0"),
        (lambda: links().submit(move(HOST, HOST), 0.0), "no link carries 'host->host'"),
        (lambda: links().submit(move(Tier.REMOTE, DEVICE), 0.0), "no link carries 'remote->device'"),
        (lambda: links().submit(move(HOST, DEVICE, layers=(2, 3)), 0.0), r"layers=\(2, 3\) must be"),
        (lambda: links().submit(move(HOST, DEVICE, layers=(0, 0)), 0.0), r"layers=\(0, 0\) must be"),
        (lambda: links().submit(move(HOST, DEVICE), 0.0, [links().submit(move(HOST, DEVICE), 0.0)]), "not submitted"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
