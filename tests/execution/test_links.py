"""Links: order, contention, conservation of bytes and the times of futures."""

import math
from importlib.resources import files
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from kvarena.framework.execution.hardware import Hardware
from kvarena.framework.execution.links import Link, LinkSet, hardware_links
from kvarena.framework.schema import build

UP, DOWN = "host->device", "device->host"


def pair(bytes_per_s=100.0, latency_s=0.0, duplex_loss=0.2):
    return LinkSet([Link(name, bytes_per_s, latency_s, duplex_loss) for name in (UP, DOWN)])


# (gap before it, link, bytes, priority, layers)
submissions = st.lists(
    st.tuples(st.floats(0, 5), st.sampled_from([UP, DOWN]), st.integers(0, 1000), st.integers(0, 2), st.integers(1, 5)),
    min_size=1,
    max_size=25,
)


def play(links, plan):
    now_s, transfers, finished = 0.0, [], []
    for gap_s, link, num_bytes, priority, layers in plan:
        now_s += gap_s
        transfers.append(links.submit(now_s, link, num_bytes, priority, layers))
        links.check()
    while (event_s := links.next_event_s()) < math.inf:
        finished += links.advance(event_s)
        links.check()
    return transfers, finished


@given(submissions, st.floats(0, 2), st.floats(0, 0.9))
def test_every_transfer_ends_once_and_none_overlap(plan, latency_s, duplex_loss):
    links = pair(latency_s=latency_s, duplex_loss=duplex_loss)
    transfers, finished = play(links, plan)
    assert len(finished) == len(transfers) and set(map(id, finished)) == set(map(id, transfers))
    assert [t.end_s for t in finished] == sorted(t.end_s for t in transfers)
    for name in (UP, DOWN):
        assert links.pending_bytes(name) == 0
        mine = sorted((t for t in finished if t.link == name), key=lambda t: (t.start_s, t.end_s))
        assert all(before.end_s <= after.start_s for before, after in pairwise(mine))
        assert all(t.submitted_s <= t.start_s <= t.end_s for t in mine)


@given(submissions)
def test_equal_priorities_complete_in_order_and_urgent_ones_overtake_waiting_ones(plan):
    transfers, _ = play(pair(), plan)
    for i, first in enumerate(transfers):
        for second in transfers[i + 1 :]:
            if first.link == second.link:
                if first.priority <= second.priority:
                    assert first.end_s <= second.end_s
                elif first.start_s > second.submitted_s:
                    assert second.end_s <= first.start_s


@given(submissions, st.floats(0, 2), st.floats(0, 0.9))
def test_no_transfer_is_faster_than_its_link_or_slower_than_full_contention(plan, latency_s, duplex_loss):
    transfers, _ = play(pair(latency_s=latency_s, duplex_loss=duplex_loss), plan)
    for t in transfers:
        taken_s, alone_s = t.end_s - t.start_s, t.num_bytes / 100.0
        assert taken_s >= (latency_s + alone_s) * (1 - 1e-9) - 1e-9
        assert taken_s <= (latency_s + alone_s / (1 - duplex_loss)) * (1 + 1e-9) + 1e-9


@given(submissions, st.floats(0, 2))
def test_layers_arrive_in_order_and_the_last_with_the_transfer(plan, latency_s):
    transfers, _ = play(pair(latency_s=latency_s), plan)
    for t in transfers:
        assert len(t.layer_ends_s) == t.layers
        assert t.layer_ends_s == sorted(t.layer_ends_s)
        assert t.layer_ends_s[0] >= t.start_s and t.layer_ends_s[-1] == t.end_s


@given(submissions, st.floats(0.1, 3))
def test_how_often_the_clock_is_moved_changes_nothing(plan, tick_s):
    coarse, _ = play(pair(), plan)
    links, fine, now_s = pair(), [], 0.0
    for gap_s, link, num_bytes, priority, layers in plan:
        end_s = now_s + gap_s
        while now_s + tick_s < end_s:
            now_s += tick_s
            links.advance(now_s)
        now_s = end_s
        fine.append(links.submit(now_s, link, num_bytes, priority, layers))
    links.advance(1e6)
    for a, b in zip(coarse, fine, strict=True):
        assert b.end_s == pytest.approx(a.end_s, rel=1e-9)
        assert b.layer_ends_s == pytest.approx(a.layer_ends_s, rel=1e-9)


@given(submissions)
def test_forecasts_hold_when_nothing_more_is_submitted(plan):
    links, now_s, transfers = pair(latency_s=0.1), 0.0, []
    for gap_s, link, num_bytes, priority, layers in plan:
        now_s += gap_s
        transfers.append(links.submit(now_s, link, num_bytes, priority, layers))
    forecasts = [links.forecast(t) for t in transfers]
    links.check()
    first_s = min((t.end_s for t in forecasts if t.end_s > now_s), default=math.inf)
    if not links.advance(now_s):
        assert links.next_event_s() == first_s
    links.advance(1e6)
    for forecast, t in zip(forecasts, transfers, strict=True):
        assert (forecast.start_s, forecast.layer_ends_s) == (t.start_s, pytest.approx(t.layer_ends_s))


def test_contention_lasts_as_long_as_both_directions_run():
    links = pair(duplex_loss=0.2)
    up = links.submit(0.0, UP, 1000)
    down = links.submit(5.0, DOWN, 80)  # 80 bytes at 80 bytes/s: 5 s to 6 s
    links.advance(100.0)
    assert down.end_s == pytest.approx(6.0)
    assert up.end_s == pytest.approx(10.2)  # 500 alone, 80 shared, 420 alone


def test_directions_of_other_connections_do_not_interfere():
    links = LinkSet([Link(UP, 100.0, duplex_loss=0.5), Link("host->disk", 100.0, duplex_loss=0.5)])
    up, disk = links.submit(0.0, UP, 100), links.submit(0.0, "host->disk", 100)
    links.advance(10.0)
    assert up.end_s == disk.end_s == 1.0


def test_latency_delays_the_first_layer_and_takes_the_link():
    links = pair(latency_s=2.0)
    first, second = links.submit(0.0, UP, 100, layers=4), links.submit(0.0, UP, 100)
    assert links.next_event_s() == 3.0
    assert links.pending_bytes(UP) == 200
    assert links.advance(2.5) == []
    assert first.layer_ends_s == pytest.approx([2.25, 2.5]) and not first.done
    assert links.pending_bytes(UP) == pytest.approx(150)
    assert links.advance(6.0) == [first, second]
    assert first.layer_ends_s == pytest.approx([2.25, 2.5, 2.75, 3.0])
    assert (second.start_s, second.end_s) == (3.0, 6.0)


def test_a_running_transfer_is_not_interrupted():
    links = pair()
    slow, urgent = links.submit(0.0, UP, 1000, priority=1), links.submit(1.0, UP, 100, priority=0)
    assert links.advance(20.0) == [slow, urgent]
    assert urgent.start_s == slow.end_s == 10.0


def test_completions_met_while_submitting_are_not_lost():
    links = pair()
    first = links.submit(0.0, UP, 100)
    links.submit(5.0, UP, 100)
    assert links.next_event_s() == 5.0
    assert links.advance(5.0) == [first]
    assert links.next_event_s() == 6.0


def test_an_idle_set_has_no_event():
    assert pair().next_event_s() == math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda links: links.submit(0.0, "disk->host", 1), "unknown link 'disk->host'"),
        (lambda links: links.submit(0.0, UP, -1), "num_bytes=-1"),
        (lambda links: links.submit(0.0, UP, 1, layers=0), "layers=0"),
        (lambda links: links.submit(0.5, UP, 1), "time 0.5 must be finite and not before 1.0"),
        (lambda links: links.advance(math.inf), "time inf"),
        (lambda links: links.forecast(pair().submit(0.0, UP, 5)), "was not submitted here"),
        (lambda _: Link("pcie", 1.0), "source->destination"),
        (lambda _: Link(UP, 0.0), "bytes_per_s=0.0"),
        (lambda _: Link(UP, 1.0, latency_s=-1.0), "latency_s=-1.0"),
        (lambda _: Link(UP, 1.0, duplex_loss=1.0), "duplex_loss=1.0"),
        (lambda _: LinkSet([Link(UP, 1.0), Link(UP, 2.0)]), "given twice"),
    ],
)
def test_bad_arguments_are_named(call, message):
    links = pair()
    links.advance(1.0)
    with pytest.raises(ValueError, match=message):
        call(links)


def test_an_instance_has_a_link_each_way_between_neighbouring_tiers():
    knobs = OmegaConf.to_container(OmegaConf.load(str(files("kvarena.conf") / "hardware" / "4xa100-80g.yaml")))
    links = LinkSet(hardware_links(build(Hardware, knobs, "")))
    rates = {link.name: link.bytes_per_s for link in links.links}
    assert rates == {UP: 1.04e11, DOWN: 1.04e11, "disk->host": 5e9, "host->disk": 3e9}
    up, down = links.submit(0.0, UP, 10**10), links.submit(0.0, DOWN, 10**10)
    links.advance(10.0)
    assert up.end_s == down.end_s == pytest.approx(10**10 / (1.04e11 * 0.81), rel=1e-3)
