"""The simulated executor fills the executor's contract."""

import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from kvarena.framework.execution.contract import Batch, Segment
from kvarena.framework.execution.hardware import Hardware
from kvarena.framework.execution.links import SimulatedLinks
from kvarena.framework.execution.shapes import model_shape
from kvarena.framework.execution.simulated import SimulatedBackend, SimulatedExecutor
from kvarena.framework.execution.transfers import Transfer
from kvarena.framework.memory.moves import Move
from kvarena.framework.policy import Tier
from kvarena.framework.schema import ConfigError, build

TABLE = np.zeros(1, dtype=np.int32)


def load(group, name):
    return OmegaConf.to_container(OmegaConf.load(str(files("kvarena.conf") / group / f"{name}.yaml")))


def executor(model="llama-3-8b", hardware="h100", **options):
    return SimulatedExecutor(
        model_shape(load("model", model)), build(Hardware, load("hardware", hardware), ""), 16, **options
    )


def segment(start, length=1, sample=True):
    return Segment(request=0, log=None, start=start, length=length, table=TABLE, sample=sample)


def test_one_step_costs_what_the_cost_model_says_and_yields_no_tokens():
    backend = executor()
    batch = Batch([segment(100), segment(0, 64, sample=False), segment(4000, 10)])
    result = backend.run(batch)
    assert result.tokens == [-1, -1]
    expected_s = backend.costs.step_s(np.array([1, 64, 10]), np.array([101, 64, 4010]), 2)
    assert result.duration_s == expected_s > 0


def test_a_decode_step_costs_what_the_cost_model_says():
    backend = executor()
    result = backend.run(Batch([segment(100), segment(4000)]))
    assert result.duration_s == backend.costs.step_s(np.array([1, 1]), np.array([101, 4001]), 2)


def test_a_stretch_takes_as_long_as_its_steps():
    backend = executor()
    starts = [10, 999, 5000]
    result = backend.run(Batch([segment(start) for start in starts], steps=50))
    singles = (backend.run(Batch([segment(start + i) for start in starts])).duration_s for i in range(50))
    assert result.tokens == [-1, -1, -1]
    assert result.duration_s == pytest.approx(sum(singles), rel=1e-12)


def test_duration_until_agrees_with_run():
    backend = executor()
    segments = [segment(10), segment(999)]
    limit_s = 0.3
    steps = backend.duration_until(Batch(segments, steps=1000), limit_s)
    assert 1 < steps < 1000
    assert backend.run(Batch(segments, steps=steps)).duration_s >= limit_s
    assert backend.run(Batch(segments, steps=steps - 1)).duration_s < limit_s
    exact_s = backend.run(Batch(segments, steps=77)).duration_s
    assert backend.duration_until(Batch(segments, steps=1000), exact_s) == 77
    assert backend.duration_until(Batch(segments, steps=20), 1e9) == 20
    assert backend.duration_until(Batch(segments, steps=20), -1.0) == 1
    assert backend.duration_until(Batch([segment(0, 500)], steps=1), 1e9) == 1


@pytest.mark.parametrize("wrong", [segment(0, 2), segment(5, sample=False)])
def test_a_stretch_holds_sampled_decodes_only(wrong):
    with pytest.raises(ValueError, match="steps=3 must hold sampled segments of length 1 only"):
        executor().run(Batch([segment(7), wrong], steps=3))


def test_an_empty_batch_takes_no_time():
    assert executor().run(Batch()).duration_s == 0.0


def test_two_executors_agree_bit_for_bit():
    batch = Batch([segment(i * 37, 1 + i % 5) for i in range(200)])
    assert executor().run(batch) == executor().run(batch)


def test_max_steps_is_the_knob():
    knobs = load("backend", "simulated")
    assert knobs.pop("name") == "simulated"
    assert set(knobs) == set(SimulatedBackend.__dataclass_fields__)
    assert build(SimulatedBackend, knobs, "backend=simulated") == SimulatedBackend()
    assert executor(max_steps=7).max_steps == 7
    with pytest.raises(ConfigError, match="max_steps=0"):
        build(SimulatedBackend, {"max_steps": 0}, "backend=simulated")


def test_a_model_that_does_not_fit_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"'llama-2-70b' needs 138\.0 GB .* 'a100-80g' holds 1 x 85\.9 GB") as error:
        executor("llama-2-70b", "a100-80g")
    assert "\n" not in str(error.value)


# --- waiting and loading --------------------------------------------------------------------------------------------

LAYERS = 32  # of llama-3-8b
PROMPT = [segment(1000, 100), segment(50)]


def linked(**options):
    """An executor, and the links it waits for."""
    shape, machine = model_shape(load("model", "llama-3-8b")), build(Hardware, load("hardware", "h100"), "")
    links = SimulatedLinks(machine, 16 * shape.kv_bytes_per_token, shape.num_layers)
    return SimulatedExecutor(shape, machine, 16, links=links, **options), links


def swap_in(pages, **options):
    slots, keys = np.arange(pages, dtype=np.int32), np.arange(pages, dtype=np.int64)
    return Move(Tier.HOST, Tier.DEVICE, slots, slots, keys, keys, "swap-in", **options)


def arrived(*ends_s, layers=None):
    """A load that brought its parts at ``ends_s``."""
    transfer = Transfer(swap_in(1, layers=layers), 1, len(ends_s), 0.0, 0.0, ends_s[-1])
    transfer.layer_ends_s = list(ends_s)
    return transfer


def plain_s(backend, segments=PROMPT):
    """What ``segments`` take if nothing waits: altogether, and one layer."""
    total_s = backend.run(Batch(segments)).duration_s
    outside_s = backend.costs.outside_s(len(segments), sum(segment.sample for segment in segments))
    assert 0 < outside_s < total_s
    return total_s, (total_s - outside_s) / LAYERS


def layer_by_layer(start_s, ready_s, arrivals_s, layer_s):
    """When the last layer ends, told the slow way."""
    end_s = max(start_s, ready_s)
    for arrival_s in arrivals_s:
        end_s = max(end_s, arrival_s) + layer_s
    return end_s


def test_transfers_that_have_ended_change_nothing():
    backend, links = linked()
    transfer = links.submit(swap_in(50), 0.0)
    assert links.poll(9.0) == [transfer]
    result = backend.run(Batch(PROMPT, waits=[transfer], loads=[transfer], start_s=9.0))
    assert result == backend.run(Batch(PROMPT)) == executor().run(Batch(PROMPT))
    assert result.stall_s == 0.0


def test_an_iteration_begins_after_what_it_waits_for():
    backend, links = linked()
    total_s, _ = plain_s(backend)
    waits = [links.submit(swap_in(pages), 5.0) for pages in (100, 300)]
    result = backend.run(Batch(PROMPT, waits=waits, start_s=5.0))
    assert result.stall_s == waits[1].end_s - 5.0 > 0.1 * total_s
    assert result.duration_s == result.stall_s + total_s


def test_a_load_faster_than_computing_hides_behind_it_but_for_its_first_layer():
    backend, links = linked()
    total_s, layer_s = plain_s(backend)
    transfer = links.submit(swap_in(60), 3.0)
    result = backend.run(Batch(PROMPT, loads=[transfer], start_s=3.0))
    load_s = transfer.end_s - 3.0
    assert load_s / LAYERS < layer_s and load_s > 0.2 * total_s
    assert result.stall_s == pytest.approx(transfer.layer_ends_s[0] - 3.0)
    assert result.stall_s < 1.2 * load_s / LAYERS + 1e-5


def test_a_load_slower_than_computing_leaves_only_its_last_layer_to_compute():
    backend, links = linked()
    total_s, layer_s = plain_s(backend)
    transfer = links.submit(swap_in(1000), 3.0)
    result = backend.run(Batch(PROMPT, loads=[transfer], start_s=3.0))
    load_s = transfer.end_s - 3.0
    assert load_s > LAYERS * layer_s
    assert result.duration_s == pytest.approx(load_s + layer_s + (total_s - LAYERS * layer_s))
    assert result.stall_s == pytest.approx(load_s - (LAYERS - 1) * layer_s)


def test_loading_by_layers_takes_the_longer_of_loading_and_computing_and_blocking_their_sum():
    """CachedAttention 3.2.1 and Pensieve 4.3.3: what overlaps is the smaller of the two, but for one layer."""
    for pages in (5, 20, 50, 100, 400):
        backend, links = linked()
        total_s, layer_s = plain_s(backend)
        load = links.submit(swap_in(pages), 0.0)
        pipelined_s = backend.run(Batch(PROMPT, loads=[load])).duration_s
        blocking_s = backend.run(Batch(PROMPT, waits=[load])).duration_s
        load_s, layers_s = load.end_s, LAYERS * layer_s
        assert blocking_s == pytest.approx(load_s + total_s)
        one_layer_s = max(load_s / LAYERS + 1e-5, layer_s)
        assert 0 <= pipelined_s - (max(load_s, layers_s) + total_s - layers_s) <= one_layer_s
        assert blocking_s - pipelined_s >= min(load_s, layers_s) - one_layer_s > 0


def test_what_was_loaded_early_saves_its_time():
    """A read buffer: layers that arrived before the iteration began."""
    backend, links = linked()
    early = links.submit(swap_in(400, layers=(0, 15)), 0.0)
    links.settle([early], 0.0)
    start_s = early.end_s
    rest = links.submit(swap_in(400, layers=(15, LAYERS - 15)), start_s)
    buffered = backend.run(Batch(PROMPT, loads=[early, rest], start_s=start_s))
    backend, links = linked()
    whole = backend.run(Batch(PROMPT, loads=[links.submit(swap_in(400), start_s)], start_s=start_s))
    assert buffered.stall_s < whole.stall_s - 0.9 * start_s


@given(
    st.lists(st.tuples(st.integers(0, LAYERS - 1), st.integers(1, LAYERS), st.booleans()), max_size=5),
    st.lists(st.floats(0, 0.05), max_size=3),
    st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_layers_begin_when_the_one_before_ended_and_their_part_of_every_load_is_there(ranges, waits_s, seed):
    rng, backend = np.random.default_rng(seed), linked()[0]
    total_s, layer_s = plain_s(backend)
    start_s, arrivals_s, loads = 2.0, np.zeros(LAYERS), []
    for first, count, whole in ranges:
        count = min(count, LAYERS - first)
        ends_s = start_s - 0.01 + np.cumsum(rng.exponential(rng.choice([0.1, 1, 5]) * layer_s, count))
        ends_s = ends_s[-1:] if whole else ends_s
        loads.append(arrived(*ends_s.tolist(), layers=(first, count)))
        part = arrivals_s[first : first + count]
        part[:] = np.maximum(part, ends_s)
    waits = [arrived(start_s - 0.01 + wait_s) for wait_s in waits_s]
    result = backend.run(Batch(PROMPT, waits=waits, loads=loads, start_s=start_s))
    ready_s = max([start_s, *[wait.end_s for wait in waits]])
    layers_end_s = layer_by_layer(start_s, ready_s, arrivals_s, layer_s)
    assert start_s + result.duration_s == pytest.approx(layers_end_s + total_s - LAYERS * layer_s, rel=1e-9)
    assert result.duration_s == result.stall_s + total_s


def test_a_load_of_fewer_parts_than_layers_arrives_whole():
    backend = executor()
    total_s, _ = plain_s(backend)
    for load_ in (arrived(0.2), arrived(0.1, 0.2), arrived(0.2, layers=(0, 7))):
        assert backend.run(Batch(PROMPT, loads=[load_])).stall_s == 0.2
    late = backend.run(Batch(PROMPT, loads=[arrived(0.2, layers=(16, 16))]))
    assert 0.2 - total_s < late.stall_s < 0.2


def test_a_load_that_ends_earlier_can_be_the_one_that_is_waited_for():
    backend = executor()
    _, layer_s = plain_s(backend)
    back, front = arrived(0.2, layers=(16, 16)), arrived(0.2 - 15.5 * layer_s, layers=(0, 4))
    for loads in ([back, front], [front, back]):
        assert backend.run(Batch(PROMPT, loads=loads)).stall_s == front.end_s
    assert backend.run(Batch(PROMPT, loads=[back])).stall_s == pytest.approx(0.2 - 16 * layer_s)


def test_only_the_first_step_of_a_stretch_waits():
    backend, links = linked()
    segments = [segment(10), segment(999)]
    load_ = links.submit(swap_in(400), 1.0)
    once = backend.run(Batch(segments, loads=[load_], start_s=1.0))
    stretch = backend.run(Batch(segments, steps=50, loads=[load_], start_s=1.0))
    assert stretch.stall_s == once.stall_s > 0
    assert stretch.duration_s == once.stall_s + backend.run(Batch(segments, steps=50)).duration_s


def test_duration_until_counts_what_a_stretch_waits():
    backend, links = linked()
    waits = [links.submit(swap_in(1000), 1.0)]
    batch = Batch([segment(10), segment(999)], steps=1000, waits=waits, start_s=1.0)
    for limit_s in (0.1, 0.3):
        steps = backend.duration_until(batch, limit_s)
        assert 1 < steps < backend.duration_until(Batch(batch.segments, steps=1000), limit_s)
        assert backend.run(Batch(batch.segments, steps, waits, start_s=1.0)).duration_s >= limit_s
        assert backend.run(Batch(batch.segments, steps - 1, waits, start_s=1.0)).duration_s < limit_s
    exact_s = backend.run(Batch(batch.segments, 77, waits, start_s=1.0)).duration_s
    assert backend.duration_until(batch, exact_s) == 77


def test_a_load_that_waits_for_a_yielding_swap_out_is_waited_for():
    backend, links = linked()
    slots, keys = np.arange(100, dtype=np.int32), np.arange(100, dtype=np.int64)
    out = links.submit(Move(Tier.DEVICE, Tier.HOST, slots, slots, keys, keys, "swap-out", yields=True), 0.0)
    load_ = links.submit(swap_in(100, urgent=True), 0.0, [out])
    result = backend.run(Batch(PROMPT, loads=[load_]))
    assert out.end_s == load_.start_s
    assert result.stall_s == pytest.approx(load_.layer_ends_s[0])


def test_what_ran_ahead_is_polled_when_the_iteration_ends():
    backend, links = linked()
    first, second = links.submit(swap_in(100), 1.0), links.submit(swap_in(400), 1.0)
    result = backend.run(Batch(PROMPT, loads=[first, second], start_s=1.0))
    assert links.poll(1.0) == []
    assert links.poll(1.0 + result.duration_s) == [first, second]


def test_an_executor_without_links_refuses_what_has_not_ended():
    _, links = linked()
    with pytest.raises(ValueError, match="links=None"):
        executor().run(Batch(PROMPT, waits=[links.submit(swap_in(1), 0.0)]))


def test_a_simulated_run_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from kvarena.framework.execution import cost, hardware, links, shapes, simulated;"
        "print(sorted({'torch', 'transformers', 'triton', 'hydra', 'wandb'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
