"""Bad knobs are refused in one line that names knob, value and range."""

from __future__ import annotations

from typing import Any

import pytest

from kvarena.framework.registry import Registry
from kvarena.framework.schema import ConfigError

REGISTRY = Registry.discover()
BUDGETED = [
    *("adakv", "buzz", "expected_attention", "future", "h2o", "keydiff", "knorm", "pyramidkv", "random", "snapkv"),
    *("streaming_llm", "tova", "window"),
]
TOKENS = {"budget_ratio": None}
PARTS = {"budget_tokens": None, "budget_ratio": None}


@pytest.mark.parametrize("name", BUDGETED)
@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (PARTS, "budget_tokens is None and budget_ratio is None; exactly one of the two must be given, the other null"),
        ({"budget_tokens": 900, "budget_ratio": 0.5}, "budget_tokens is 900 and budget_ratio is 0.5; exactly one"),
        ({"budget_tokens": 0, **TOKENS}, "budget_tokens is 0; it must be at least 1"),
        ({"budget_tokens": None, "budget_ratio": 0}, "budget_ratio is 0.0; it must be more than 0 and at most 1"),
        ({"budget_tokens": None, "budget_ratio": 1.5}, "budget_ratio is 1.5; it must be more than 0 and at most 1"),
        ({"positions": "slots"}, "positions is 'slots', expected one of 'true', 'cache'"),
    ],
)
def test_budgets(name: str, knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"truncation={name}: {message}"):
        REGISTRY.build("truncation", name, knobs)


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("snapkv", {"budget_tokens": 32, **TOKENS}, "budget_tokens is 32; it must be more than window = 32"),
        ("snapkv", {"window": 0}, "window is 0; it must be at least 1"),
        ("snapkv", {"kernel": 4}, "kernel is 4; it must be odd"),
        ("snapkv", {"kernel": -1}, "kernel is -1; it must be at least 1"),
        ("snapkv", {"pooling": "sum"}, "pooling is 'sum', expected one of 'avg', 'max'"),
        ("snapkv", {"group": "median"}, "group is 'median', expected one of 'mean', 'max', 'sum'"),
        ("expected_attention", {"budget_tokens": 4, **TOKENS}, "budget_tokens is 4; it must be more than sink = 4"),
        ("expected_attention", {"sink": -1}, "sink is -1; it must be at least 0"),
        ("expected_attention", {"epsilon": -0.1}, "epsilon is -0.1; it must be at least 0"),
        ("expected_attention", {"future_positions": 0}, "future_positions is 0; it must be at least 1"),
        ("expected_attention", {"group": "all"}, "group is 'all', expected one of 'mean', 'max', 'sum'"),
        ("pyramidkv", {"beta": 0}, "beta is 0; it must be at least 1"),
        ("adakv", {"floor_alpha": 1.1}, "floor_alpha is 1.1; it must be from 0 to 1"),
        ("streaming_llm", {"budget_tokens": 4}, "budget_tokens is 4; it must be more than start = 4"),
        ("streaming_llm", {"start": -1}, "start is -1; it must be at least 0"),
        ("streaming_llm", {"recent": 512}, "recent is 512: with start that is the budget, so budget_tokens"),
        ("streaming_llm", {"recent": 0, **PARTS}, "recent is 0; it must be at least 1, or null"),
        ("h2o", {"heavy": 3, "recent": 4}, "heavy is 3.0 and recent is 4.0: that is the budget, so budget_tokens"),
        ("h2o", {"heavy": 2.5}, "heavy is 2.5; it must be a whole number of tokens, or a share from 0 to below 1"),
        ("h2o", {"recent": -1}, "recent is -1.0; it must be a whole number"),
        ("h2o", {"heavy": 0, "recent": 0, **PARTS}, "heavy and recent are 0; at least one must be more"),
        ("h2o", {"recent": 0, "variant": "flexgen"}, "recent is 0.0; variant=flexgen needs at least 1"),
        ("h2o", {"budget_tokens": 9, **TOKENS, "recent": 10}, "recent is 10.0; it must be at most budget_tokens = 9"),
        ("h2o", {"decay": 0}, "decay is 0.0; it must be more than 0 and at most 1"),
        ("h2o", {"variant": "dropped"}, "variant is 'dropped', expected one of 'real_drop', 'flexgen'"),
        ("buzz", {"budget_tokens": 164}, "budget_tokens is 164; it must be more than sink . window = 164"),
        ("buzz", {"stride": 0}, "stride is 0; it must be at least 1"),
        ("corm", {"window": 0}, "window is 0; it must be at least 1"),
        ("corm", {"recent": -1}, "recent is -1; it must be at least 0"),
        ("corm", {"threshold": 0}, "threshold is 0.0; it must be more than 0 and at most 1"),
        ("corm", {"assumed_share": 2}, "assumed_share is 2.0; it must be from 0 to 1"),
    ],
)
def test_the_policies_own(name: str, knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"truncation={name}: {message}"):
        REGISTRY.build("truncation", name, knobs)


def test_what_python_is_given_is_checked_too() -> None:
    for name, knob in (("h2o", "group"), ("h2o", "positions"), ("h2o", "variant"), ("snapkv", "pooling")):
        with pytest.raises(ValueError, match=f"{knob} is 'other'; it must be one of"):
            REGISTRY.find("truncation", name).policy(**{knob: "other"})


def test_yaml_reads_the_word_true_as_a_truth_value() -> None:
    """``truncation.positions=true`` on the command line."""
    assert REGISTRY.build("truncation", "streaming_llm", {"positions": True}).positions == "true"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="positions is False, expected one of 'true', 'cache'"):
        REGISTRY.build("truncation", "streaming_llm", {"positions": False})


def test_h2os_parts_may_be_shares() -> None:
    for knobs, heavy_and_recent in (
        ({**PARTS, "heavy": 0.1, "recent": 0.29}, (10, 29)),
        ({**PARTS, "heavy": 7, "recent": 0.1}, (7, 10)),
        ({"budget_ratio": 0.25}, (12, 13)),
        ({"budget_ratio": 0.3, "recent": 0}, (30, 0)),
        ({"budget_ratio": 0.3, "heavy": 0}, (0, 30)),
        ({"budget_ratio": 0.3, "recent": 40}, (0, 30)),
    ):
        policy: Any = REGISTRY.build("truncation", "h2o", knobs)
        recent = policy.recent_tokens(100)
        assert (policy.budget(100) - recent, recent) == heavy_and_recent


def test_corm_in_a_simulation_keeps_the_recent_and_a_share_of_the_others() -> None:
    policy: Any = REGISTRY.build("truncation", "corm", {"recent": 100, "assumed_share": 0.25})
    assert policy.kept_tokens(1000, 1000, "prompt") == 100 + 225
    assert policy.kept_tokens(300, 1000, "prompt") == 300
    assert policy.kept_tokens(1000, 1000, "chunk") == 1000
    assert policy.kept_tokens(50, 50, "prompt") == 50
