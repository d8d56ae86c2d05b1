"""Links: order, dependencies, directions, contention, conservation of bytes and the times of futures."""

import math
from importlib.resources import files
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from kvarena.framework.execution.hardware import Hardware
from kvarena.framework.execution.lanes import Link
from kvarena.framework.execution.links import LinkSet, hardware_links
from kvarena.framework.execution.transfers import Transfer
from kvarena.framework.memory.moves import Move
from kvarena.framework.policy import Tier
from kvarena.framework.schema import build

UP, DOWN, READ, WRITE = "host->device", "device->host", "disk->host", "host->disk"
ROUTES = [(UP,), (DOWN,), (READ,), (WRITE,), (READ, UP), (DOWN, WRITE)]
NONE = np.empty(0, np.int64)


def pair(bytes_per_s=100.0, latency_s=0.0, duplex_loss=0.2):
    return LinkSet([Link(name, bytes_per_s, latency_s, duplex_loss) for name in (UP, DOWN)])


def all_links(latency_s=0.0, duplex_loss=0.2):
    return LinkSet([Link(name, 100.0, latency_s, duplex_loss) for name in (UP, DOWN, READ, WRITE)])


def send(links, now_s, route, num_bytes, layers=1, after=(), urgent=False, yields=False):
    """A transfer of ``num_bytes`` over ``route`` (one link, or several); its move holds what the links look at."""
    route = (route,) if isinstance(route, str) else route
    names = NONE.astype(np.int32)
    move = Move(Tier.HOST, Tier.DEVICE, names, names, NONE, NONE, "test", urgent=urgent, yields=yields)
    transfer = Transfer(move, num_bytes, layers, now_s)
    links.enter(transfer, route, now_s, after)
    return transfer


# (gap before it, route, bytes, layers, how far back what it follows is, urgent, yields)
submission = st.tuples(
    *(st.one_of(st.just(0.0), st.floats(0, 5)), st.sampled_from(ROUTES), st.integers(0, 1000), st.integers(1, 5)),
    *(st.lists(st.integers(1, 6), max_size=2), st.booleans(), st.booleans()),
)
submissions = st.lists(submission, min_size=1, max_size=25)
one_link = st.lists(
    st.tuples(st.floats(0, 5), st.sampled_from([UP, DOWN]), st.integers(0, 1000), st.integers(1, 5), st.booleans()),
    min_size=1,
    max_size=25,
)


def play(links, plan):
    """All of ``plan`` entered and carried to its end: transfers in the order given, and in order of their ends."""
    now_s, transfers, afters, ended = 0.0, [], [], []
    for gap_s, route, num_bytes, layers, back, urgent, yields in plan:
        now_s += gap_s
        after = [transfers[-i] for i in back if i <= len(transfers)]
        transfers.append(send(links, now_s, route, num_bytes, layers, after, urgent, yields))
        afters.append(after)
    ended += drain(links, now_s)
    return transfers, afters, ended


def drain(links, now_s=0.0):
    ended = []
    while (event_s := links.next_end_s(now_s)) < math.inf:
        ended += links.poll(event_s)
        links.check()
    return ended


def simple(plan):
    """A plan of :data:`one_link` as one of :data:`submissions`."""
    return [(gap_s, (link,), size, layers, (), urgent, False) for gap_s, link, size, layers, urgent in plan]


@given(submissions, st.floats(0, 2), st.floats(0, 0.9))
def test_every_transfer_ends_once_whatever_follows_and_yields(plan, latency_s, duplex_loss):
    links = all_links(latency_s, duplex_loss)
    transfers, _, ended = play(links, plan)
    assert len(ended) == len(transfers) and set(map(id, ended)) == set(map(id, transfers))
    assert [t.end_s for t in ended] == sorted(t.end_s for t in transfers)
    assert all(t.submitted_s <= t.start_s <= t.end_s for t in transfers)
    assert [links.pending_bytes(link) for link in (UP, DOWN, READ, WRITE)] == [0, 0, 0, 0]


@given(submissions, st.floats(0, 2))
def test_a_transfer_begins_after_all_that_it_follows(plan, latency_s):
    transfers, afters, _ = play(all_links(latency_s), plan)
    for transfer, after in zip(transfers, afters, strict=True):
        assert all(earlier.end_s <= transfer.start_s for earlier in after)


@given(submissions, st.floats(0, 2), st.floats(0, 0.9))
def test_links_carry_one_at_a_time_and_none_yielding_begins_against_the_other_direction(plan, latency_s, duplex_loss):
    plan = [item for item in plan if len(item[1]) == 1]
    transfers, _, _ = play(all_links(latency_s, duplex_loss), plan)
    lane = {t: item[1][0] for t, item in zip(transfers, plan, strict=True)}
    for name, opposite in ((UP, DOWN), (DOWN, UP), (READ, WRITE), (WRITE, READ)):
        mine = sorted((t for t in transfers if lane[t] == name), key=lambda t: (t.start_s, t.end_s))
        assert all(before.end_s <= after.start_s for before, after in pairwise(mine))
        others = [t for t in transfers if lane[t] == opposite]
        for t in mine:
            if t.move.yields:
                assert not any(other.start_s < t.start_s < other.end_s for other in others)


@given(submissions)
def test_nothing_ready_waits_for_a_yielding_transfer_of_the_other_direction(plan):
    """Where one that yields begins, no other of the opposite direction was waiting that could have gone."""
    plan = [(gap_s, (route[0],), *rest) for gap_s, route, *rest in plan]
    transfers, afters, _ = play(all_links(), plan)
    lane = {t: item[1][0] for t, item in zip(transfers, plan, strict=True)}
    opposite = {UP: DOWN, DOWN: UP, READ: WRITE, WRITE: READ}
    for t, after in zip(transfers, afters, strict=True):
        ready_s = max([t.submitted_s, *[earlier.end_s for earlier in after]])
        if not t.move.yields:
            begun = [o for o in transfers if o.move.yields and lane[o] == opposite[lane[t]]]
            assert not any(ready_s < o.start_s < t.start_s for o in begun)


@given(one_link)
def test_equally_urgent_ones_complete_in_order_and_urgent_ones_overtake_waiting_ones(plan):
    transfers, _, _ = play(pair(), simple(plan))
    link = {t: item[1] for t, item in zip(transfers, plan, strict=True)}
    for i, first in enumerate(transfers):
        for second in transfers[i + 1 :]:
            if link[first] == link[second]:
                if first.move.urgent >= second.move.urgent:
                    assert first.end_s <= second.end_s
                elif first.start_s > second.submitted_s:
                    assert second.end_s <= first.start_s


@given(one_link, st.floats(0, 2), st.floats(0, 0.9))
def test_no_transfer_is_faster_than_its_link_or_slower_than_full_contention(plan, latency_s, duplex_loss):
    transfers, _, _ = play(pair(latency_s=latency_s, duplex_loss=duplex_loss), simple(plan))
    for t in transfers:
        taken_s, alone_s = t.end_s - t.start_s, t.num_bytes / 100.0
        assert taken_s >= (latency_s + alone_s) * (1 - 1e-9) - 1e-9
        assert taken_s <= (latency_s + alone_s / (1 - duplex_loss)) * (1 + 1e-9) + 1e-9


@given(submissions, st.floats(0, 2))
def test_layers_arrive_in_order_and_the_last_with_the_transfer(plan, latency_s):
    transfers, _, _ = play(all_links(latency_s), plan)
    for t in transfers:
        assert len(t.layer_ends_s) == t.layers
        assert t.layer_ends_s == sorted(t.layer_ends_s)
        assert t.layer_ends_s[0] >= t.start_s and t.layer_ends_s[-1] == t.end_s


@settings(max_examples=50)
@given(submissions, st.floats(0.1, 3))
def test_how_often_the_clock_is_moved_changes_nothing(plan, tick_s):
    coarse, _, _ = play(all_links(0.01), plan)
    links, fine, now_s = all_links(0.01), [], 0.0
    for gap_s, route, num_bytes, layers, back, urgent, yields in plan:
        end_s = now_s + gap_s
        while now_s + tick_s < end_s:
            now_s += tick_s
            links.poll(now_s)
        now_s = end_s
        after = [fine[-i] for i in back if i <= len(fine)]
        fine.append(send(links, now_s, route, num_bytes, layers, after, urgent, yields))
    links.poll(1e6)
    for a, b in zip(coarse, fine, strict=True):
        assert (b.start_s, b.end_s, b.layer_ends_s) == (a.start_s, a.end_s, a.layer_ends_s)


@given(submissions, st.lists(st.integers(0, 24), min_size=1), st.floats(0, 3))
def test_settling_runs_ahead_exactly_and_what_ended_is_polled_in_its_time(plan, chosen, later_s):
    plain, _, _ = play(all_links(0.01), plan)
    links, now_s, transfers = all_links(0.01), 0.0, []
    for gap_s, route, num_bytes, layers, back, urgent, yields in plan:
        now_s += gap_s
        after = [transfers[-i] for i in back if i <= len(transfers)]
        transfers.append(send(links, now_s, route, num_bytes, layers, after, urgent, yields))
    wanted = [transfers[i % len(transfers)] for i in chosen]
    links.settle(wanted, now_s)
    assert all(t.done for t in wanted)
    asked_s = now_s + later_s
    polled = links.poll(asked_s)
    assert all(t.end_s <= asked_s for t in polled)
    assert not [t for t in transfers if t.done and t.end_s <= asked_s and t not in polled]
    links.settle(transfers, now_s)
    assert [t.end_s for t in transfers] == [t.end_s for t in plain]
    assert len(polled) + len(links.poll(1e6)) == len(transfers)


@given(submissions, st.sets(st.integers(0, 24)))
def test_cancelling_takes_back_what_has_not_begun_and_frees_what_follows(plan, chosen):
    links, now_s, transfers = all_links(0.01), 0.0, []
    for i, (gap_s, route, num_bytes, layers, back, urgent, yields) in enumerate(plan):
        now_s += gap_s
        after = [transfers[-j] for j in back if j <= len(transfers)]
        transfers.append(send(links, now_s, route, num_bytes, layers, after, urgent, yields))
        if i in chosen:
            victim = transfers[i // 2]
            begun = victim.start_s is not None or victim.done
            assert links.cancel(victim) != begun
            assert begun or (victim.cancelled and victim.done)
        links.check()
    ended = links.poll(now_s) + drain(links, now_s)
    assert len(ended) == len(transfers) and all(t.done for t in transfers)
    assert all(t.cancelled == (t.start_s is None) for t in transfers)
    assert [t.end_s for t in ended] == sorted(t.end_s for t in ended)


def test_contention_lasts_as_long_as_both_directions_run():
    links = pair(duplex_loss=0.2)
    up, down = send(links, 0.0, UP, 1000, layers=10), send(links, 5.0, DOWN, 80)  # 80 bytes/s: 5 s to 6 s
    links.poll(100.0)
    assert down.end_s == pytest.approx(6.0)
    assert up.end_s == pytest.approx(10.2)  # 500 alone, 80 shared, 420 alone
    assert up.layer_ends_s == pytest.approx([1, 2, 3, 4, 5, 6.2, 7.2, 8.2, 9.2, 10.2])


def test_directions_of_other_connections_do_not_interfere():
    links = LinkSet([Link(UP, 100.0, duplex_loss=0.5), Link(WRITE, 100.0, duplex_loss=0.5)])
    up, disk = send(links, 0.0, UP, 100), send(links, 0.0, WRITE, 100)
    links.poll(10.0)
    assert up.end_s == disk.end_s == 1.0


def test_latency_delays_the_first_layer_and_takes_the_link():
    links = pair(latency_s=2.0)
    first, second = send(links, 0.0, UP, 100, layers=4), send(links, 0.0, UP, 100)
    assert links.next_end_s(0.0) == 3.0
    assert links.pending_bytes(UP) == 200
    assert links.poll(2.5) == [] and not first.done
    assert links.pending_bytes(UP) == pytest.approx(150)
    assert links.poll(6.0) == [first, second]
    assert first.layer_ends_s == pytest.approx([2.25, 2.5, 2.75, 3.0])
    assert (second.start_s, second.end_s) == (3.0, 6.0)


def test_two_links_are_crossed_one_after_the_other_and_layers_arrive_on_the_last():
    links = all_links(latency_s=1.0)
    fetch = send(links, 0.0, (READ, UP), 200, layers=2)
    behind, beside = send(links, 0.0, READ, 100), send(links, 0.0, UP, 100)
    assert links.pending_bytes(UP) == 300 and links.pending_bytes(READ) == 300
    ended = drain(links)
    assert ended == [beside, behind, fetch]
    assert (fetch.start_s, fetch.end_s) == (0.0, 6.0)  # 0 to 3 s on the disk's link, 3 to 6 s on the device's
    assert fetch.layer_ends_s == pytest.approx([5.0, 6.0])
    assert behind.start_s == 3.0


def test_the_end_of_a_first_hop_is_an_event_at_which_nothing_is_polled():
    links = all_links()
    fetch = send(links, 0.0, (READ, UP), 100)
    assert links.next_end_s(0.0) == 1.0
    assert links.poll(1.0) == []
    assert links.next_end_s(1.0) == 2.0
    assert links.poll(2.0) == [fetch]


def test_a_running_transfer_is_not_interrupted():
    links = pair()
    slow, urgent = send(links, 0.0, UP, 1000), send(links, 1.0, UP, 100, urgent=True)
    assert links.poll(20.0) == [slow, urgent]
    assert urgent.start_s == slow.end_s == 10.0


def test_those_given_at_one_time_compete_as_if_given_at_once():
    links = pair()
    first, urgent, out = send(links, 0.0, UP, 100), send(links, 0.0, UP, 100, urgent=True), None
    out = send(links, 0.0, DOWN, 100, yields=True)
    assert links.poll(20.0) == [urgent, first, out]


def test_swap_out_waits_for_swap_in_but_not_for_one_that_waits_for_it():
    links = pair()
    loads = [send(links, 0.0, UP, 100), send(links, 0.5, UP, 100)]
    out = send(links, 0.5, DOWN, 100, yields=True)
    refill = send(links, 0.5, UP, 100, after=[out], urgent=True)
    assert links.poll(20.0) == [*loads, out, refill]
    assert (out.start_s, out.end_s) == (2.0, 3.0)
    assert (refill.start_s, refill.end_s) == (3.0, 4.0)


def test_a_swap_out_that_has_begun_runs_on_beside_a_load():
    links = pair(duplex_loss=0.2)
    out, load = send(links, 0.0, DOWN, 100, yields=True), send(links, 0.5, UP, 80)
    links.poll(20.0)
    assert out.end_s == pytest.approx(0.5 + 50 / 80)
    assert load.start_s == 0.5


def test_of_two_that_yield_to_each_other_the_first_in_order_goes():
    links = pair()
    down, up = send(links, 0.0, DOWN, 100, yields=True), send(links, 0.0, UP, 100, yields=True)
    second = send(links, 0.0, DOWN, 100, yields=True)
    assert links.poll(20.0) == [down, up, second]
    assert up.start_s == down.end_s and second.start_s == up.end_s


def test_a_yielding_transfer_lets_others_of_its_own_direction_pass_while_it_waits():
    links = pair()
    load = send(links, 0.0, UP, 1000)
    out, saved = send(links, 0.0, DOWN, 100, yields=True, urgent=True), send(links, 0.0, DOWN, 80)
    assert links.poll(100.0) == [saved, load, out]


def test_what_is_called_off_frees_its_place_and_its_followers():
    links = pair()
    running, waiting = send(links, 0.0, UP, 100), send(links, 0.0, UP, 500)
    follower = send(links, 0.0, DOWN, 100, after=[waiting])
    links.poll(0.5)
    assert not links.cancel(running) and links.cancel(waiting) and not links.cancel(waiting)
    assert waiting.end_s == 0.5 and waiting.layer_ends_s == []
    assert links.pending_bytes(UP) == pytest.approx(50)
    assert links.poll(20.0) == [waiting, running, follower]
    assert follower.start_s == 0.5


def test_completions_met_while_submitting_are_not_lost():
    links = pair()
    first = send(links, 0.0, UP, 100)
    send(links, 5.0, UP, 100)
    assert links.next_end_s(5.0) == 5.0
    assert links.poll(5.0) == [first]
    assert links.next_end_s(5.0) == 6.0


def test_a_set_that_ran_ahead_takes_what_comes_before_its_clock_as_now():
    links = pair()
    load = send(links, 0.0, UP, 1000)
    links.settle([load], 0.0)
    assert load.end_s == 10.0
    assert links.poll(4.0) == [] and links.next_end_s(4.0) == 10.0
    late = send(links, 4.0, UP, 100, after=[load])
    assert late.submitted_s == 4.0
    assert links.poll(10.0) == [load]
    assert links.poll(11.0) == [late] and late.start_s == 10.0


def test_what_takes_no_time_ends_at_once():
    links = pair()
    nothing = send(links, 3.0, UP, 0)
    assert links.next_end_s(3.0) == 3.0
    assert links.poll(3.0) == [nothing]


def test_an_idle_set_has_no_event():
    assert pair().next_end_s(7.0) == math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda links: send(links, 0.0, READ, 1), "unknown link 'disk->host'"),
        (lambda links: send(links, 0.0, UP, -1), "num_bytes=-1"),
        (lambda links: send(links, 0.0, UP, 1, layers=0), "layers=0"),
        (lambda links: send(links, 0.0, (), 1), "a route of 0 links"),
        (lambda links: send(links, 0.0, UP, 1, after=[send(pair(), 0.0, UP, 1)]), "was not submitted here"),
        (lambda links: send(links, math.nan, UP, 1), "time nan must be finite"),
        (lambda links: links.poll(math.inf), "time inf must be finite"),
        (lambda links: links.settle([send(pair(), 0.0, UP, 5)], 0.0), "was not submitted here"),
        (lambda links: links.cancel(send(pair(), 0.0, UP, 5)), "was not submitted here"),
        (lambda _: Link("pcie", 1.0), "source->destination"),
        (lambda _: Link(UP, 0.0), "bytes_per_s=0.0"),
        (lambda _: Link(UP, 1.0, latency_s=-1.0), "latency_s=-1.0"),
        (lambda _: Link(UP, 1.0, duplex_loss=1.0), "duplex_loss=1.0"),
        (lambda _: LinkSet([Link(UP, 1.0), Link(UP, 2.0)]), "given twice"),
        (lambda _: LinkSet([]), "0 links"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(pair())


def test_an_instance_has_a_link_each_way_between_neighbouring_tiers():
    knobs = OmegaConf.to_container(OmegaConf.load(str(files("kvarena.conf") / "hardware" / "4xa100-80g.yaml")))
    links = LinkSet(hardware_links(build(Hardware, knobs, "")))
    rates = {link.name: link.bytes_per_s for link in links.links}
    assert rates == {UP: 1.04e11, DOWN: 1.04e11, READ: 5e9, WRITE: 3e9}
    up, down = send(links, 0.0, UP, 10**10), send(links, 0.0, DOWN, 10**10)
    links.poll(10.0)
    assert up.end_s == down.end_s == pytest.approx(10**10 / (1.04e11 * 0.81), rel=1e-3)
