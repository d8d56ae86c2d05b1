"""What a plugin's tests are given: steps, traces, differences and small runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvarena.framework.policy import Eviction
from kvarena.framework.registry import Registry
from kvarena.framework.replay import replay_prefixes
from kvarena.framework.schema import ConfigError
from kvarena.framework.testing import chat_trace, first_difference, small_config, small_run, steps_of, workload_trace
from kvarena.policies.eviction.lru import LRU

REGISTRY = Registry.discover()


def make(name: str) -> Eviction:
    policy = REGISTRY.build("eviction", name, {})
    assert isinstance(policy, Eviction)
    return policy


@pytest.mark.parametrize("name", REGISTRY.names("eviction"))
def test_steps_are_the_hooks_of_a_replay(name: str) -> None:
    trace = chat_trace(seed=3)
    steps = steps_of(make(name), trace, 40)
    done = replay_prefixes(make(name), trace, 40, 1)
    assert sum(step.what == "evicted" for step in steps) == done.evicted_pages > 50
    assert sum(step.what == "used" for step in steps) == sum(done.hits) > 50
    resident: set[int] = set()
    for step in steps:
        assert (step.page in resident) == (step.what != "stored")
        resident ^= {step.page} if step.what != "used" else set()
        assert len(resident) <= 40


def test_a_step_says_what_happened() -> None:
    first = steps_of(LRU(), chat_trace(), 40)[0]
    assert str(first) == "tick 1: page 0 stored (conversation 3, page 0 of its context; 1 uses, last at 1)"


def test_too_small_a_tier_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity is 3; it must be at least"):
        steps_of(LRU(), chat_trace(), 3)


def test_differences_are_found() -> None:
    assert first_difference([1, 2], [1, 2]) == ""
    assert first_difference([1, 3], [1, 2]) == "step 1: 3, expected 2"
    assert first_difference([1], [1, 2]) == "step 1: nothing more, expected 2"
    assert first_difference([1, None], [1]) == "step 1: None, expected nothing more"


def test_a_workloads_pages_are_those_of_a_replay() -> None:
    trace = workload_trace("rounds", limit=2, turns=2, prompt_tokens=32, output_tokens=16)
    assert [trace.bounds[r + 1] - trace.bounds[r] for r in range(4)] == [2, 2, 5, 5]
    with pytest.raises(ConfigError, match="unknown workload 'ronds'"):
        workload_trace("ronds")
    with pytest.raises(ConfigError, match="/no/such/trace.jsonl does not exist"):
        workload_trace("mooncake", path="/no/such/trace.jsonl")


def test_small_runs_are_reproducible_crowded_and_take_any_choice(tmp_path: Path) -> None:
    one, two = (small_run(tmp_path / name, system="pensieve") for name in ("one", "two"))
    assert not first_difference(one.rows("transfers"), two.rows("transfers"))
    assert min(one.evicted_pages.values()) > 20
    other = small_run(
        tmp_path / "other", system="pensieve", eviction={"name": "ttl", "ttl_s": 5}, workload={"limit": 3}
    )
    assert other.summary["run"]["policies"]["eviction"]["name"] == "ttl"
    assert len({row["conversation"] for row in other.rows("requests")}) == 3


def test_a_small_config_has_what_was_chosen() -> None:
    config = small_config("torch", "h2o", eviction="fifo", memory={"device_tokens": 99}, save_decisions=True)
    assert (config["truncation"]["name"], config["eviction"]["name"]) == ("h2o", "fifo")
    assert (config["memory"]["device_tokens"], config["memory"]["page_size"]) == (99, 8)
    assert config["save_decisions"] is True and config["tracking"] == {"name": "none"}
    with pytest.raises(ConfigError, match="unknown key 'evictoin'; did you mean 'eviction'"):
        small_config(evictoin="lru")
    with pytest.raises(ConfigError, match="there is no eviction=lruu"):
        small_config(eviction="lruu")
