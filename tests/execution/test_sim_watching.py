"""What it costs a simulated run that a policy watches attention."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kvarena.framework.execution.contract import Batch, Narrowing
from kvarena.framework.execution.simulated_narrowing import SimulatedNarrowing
from kvarena.framework.footprint import Footprint
from kvarena.policies.compression.none import NoCompression
from kvarena.policies.truncation.h2o import H2O
from kvarena.policies.truncation.knorm import KNorm
from kvarena.policies.truncation.snapkv import SnapKV

sys.path.insert(0, str(Path(__file__).parent))
from test_sim_executor import executor, segment


def batch(*, ordinary: bool = False) -> Batch:
    made = Batch([segment(4000, 1), segment(0, 512)])
    if not ordinary:
        made.segments[0].narrowing = Narrowing(1, 1, "decode", 4001)
        made.segments[1].narrowing = Narrowing(2, 2, "prompt", 512)
    return made


@pytest.mark.parametrize(
    ("policy", "watched"),
    [
        (H2O(), [(1, 4001), (512, 512)]),  # column sums of all queries
        (SnapKV(window=32), [(32, 512)]),  # the last queries of prompts
        (KNorm(), []),
    ],
    ids=["h2o", "snapkv", "knorm"],
)
def test_watching_takes_another_look_at_the_scores(policy, watched):
    footprint = Footprint(policy, NoCompression(), 1.0, 16)
    plain, narrowed = executor(), executor(narrowing=SimulatedNarrowing(footprint))
    more_s = narrowed.run(batch()).duration_s - plain.run(batch()).duration_s
    assert more_s == pytest.approx(sum(plain.costs.watch_s(*each) for each in watched), rel=1e-9, abs=1e-15)
    assert narrowed.run(batch(ordinary=True)).duration_s == plain.run(batch()).duration_s


def test_a_look_at_the_scores_takes_half_of_attention():
    costs = executor().costs
    for queries, keys in ((1, 3000), (512, 512), (256, 8192)):
        alone_s = costs.recompute_s(keys - queries, keys) - costs.recompute_s(0, queries)
        shorter_s = costs.watch_s(queries, keys) - costs.watch_s(queries, queries)
        assert shorter_s == pytest.approx(alone_s / 2, abs=1e-12)
