"""Golden decisions: every eviction policy on one small trace, victim by victim."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kvarena.framework.policy import Eviction, RunView, Tier
from kvarena.framework.registry import Registry
from kvarena.policies.eviction.lookahead import LookAhead
from kvarena.policies.eviction.ttl import TTL

sys.path.insert(0, str(Path(__file__).parent))
from fakes import FakeQueue, FakeRequest, FakeRun, FakeTier

TRACE = (
    "abcdabeabcdeeebbac"  # conversations of one page; Belady's own anomaly trace, then some that come again and again
)


class Rest:
    """When a conversation is asked for next."""

    now = 0

    def next_use(self, run: RunView) -> float:
        found = TRACE.find(chr(ord("a") + run.conversation), self.now)
        return float(found) if found >= 0 else float("inf")


def victims(policy: Eviction, capacity: int = 3, waiting: int = 3) -> str:
    """Who leaves, in order, where the next ``waiting`` requests are in the queue already."""
    view, rest = FakeTier(Tier.DEVICE, capacity), Rest()
    policy.bind(view, rest if policy.oracle else None)  # type: ignore[arg-type]
    held: dict[int, FakeRun] = {}
    gone = ""
    for second, letter in enumerate(TRACE):
        conversation = ord(letter) - ord("a")
        view.now_s, rest.now = float(second), second + 1
        queued = [ord(other) - ord("a") for other in TRACE[second + 1 : second + 1 + waiting]]
        view.queue = FakeQueue([FakeRequest(c, order=i) for i, c in enumerate(queued)])
        if conversation in held:
            view.use(policy, held[conversation])
            continue
        run = FakeRun(conversation)
        policy.wanted(run.keys)
        if len(held) == capacity:
            for left in view.evict(policy, 1):
                del held[left]
                gone += chr(ord("a") + left)
        view.store(policy, run)
        held[conversation] = run
    return gone


GOLDEN = {
    "arc": "abcdecade",
    "belady": "cdacde",
    "fifo": "abcdabecd",
    "gdsf": "abcdeabcdb",
    "lfu": "abcdecde",
    "lookahead": "cdabde",
    "lru": "abcdeabcde",
    "retention": "abcdeabcde",  # every page is as dear as any other: V = c / T
    "s3fifo": "abcdecada",
    "slru": "abcdecde",
    "ttl": "abcdeabcde",  # nothing expires
}


@pytest.mark.parametrize("name", Registry.discover().names("eviction"))
def test_victims(name: str) -> None:
    policy = Registry.discover().build("eviction", name, {})
    assert isinstance(policy, Eviction)
    assert victims(policy) == GOLDEN[name]


def test_knobs_matter() -> None:
    assert victims(TTL(4.0)) == GOLDEN["fifo"]
    assert victims(LookAhead(), waiting=0) == GOLDEN["lru"]
    assert victims(LookAhead(), waiting=1) == "bcdeabcde"
