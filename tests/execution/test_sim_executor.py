"""The simulated executor fills the executor's contract."""

import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
from omegaconf import OmegaConf

from kvarena.framework.execution.contract import Batch, Segment
from kvarena.framework.execution.hardware import Hardware
from kvarena.framework.execution.shapes import model_shape
from kvarena.framework.execution.simulated import SimulatedBackend, SimulatedExecutor
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


def test_a_simulated_run_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from kvarena.framework.execution import cost, hardware, links, shapes, simulated;"
        "print(sorted({'torch', 'transformers', 'triton', 'hydra', 'wandb'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
