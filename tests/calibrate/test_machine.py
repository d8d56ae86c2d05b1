"""Links, disk, hardware file and presets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from kvarena.framework.calibrate.link_times import HostTimes, attempt, link_times, measure_disk
from kvarena.framework.calibrate.machine import measured_hardware, write_hardware, write_model
from kvarena.framework.calibrate.presets import shape_preset
from kvarena.framework.execution.contract import ModelShape
from kvarena.framework.execution.cost import CostModel
from kvarena.framework.execution.hardware import Hardware
from kvarena.framework.execution.shapes import model_shape
from kvarena.framework.execution.tables import AttentionTables, Curve, Grid, OperatorTables
from kvarena.framework.schema import build

SHAPE = ModelShape("small", 4, 256, 8, 4, 32, 2048, 4_983_040, 524_288, 4, 8192)
LOCAL = Path(__file__).parents[2] / "conf/hardware/local.yaml"


def local() -> Hardware:
    knobs: Any = OmegaConf.to_container(OmegaConf.load(LOCAL))
    return build(Hardware, knobs, "hardware")


def roofline_tables(true: Hardware) -> OperatorTables:
    """What a machine that is exactly its hardware file would give."""
    model = CostModel(SHAPE, true)
    tokens, queries, contexts = np.array([1, 256, 512, 1024]), np.array([256, 1024]), np.array([1024, 4096])
    pair_s = 4 * 4 * 8 * 32 / (true.flops_per_s_32bit * true.attention_efficiency)
    key_s = SHAPE.kv_bytes_per_token / (true.memory_bytes_per_s * true.attention_bandwidth_efficiency)
    dense = [model.recompute_s(0, n) - model._segment_s(n, n, n * (n + 1) / 2) for n in tokens.tolist()]
    prefill = Grid((queries, contexts), np.array([[q * (c + q / 2) * pair_s for c in contexts] for q in queries]))
    decode = Grid((np.array([1, 8]), contexts), np.array([[n * c * key_s for c in contexts] for n in (1, 8)]))
    return OperatorTables(
        "made", SHAPE, dense=Curve(tokens, np.array(dense)), attention=AttentionTables(prefill, decode)
    )


def test_a_hardware_file_holds_the_rates_that_the_tables_show() -> None:
    true = replace(local(), flops_per_s_32bit=6e10, gemm_efficiency=1.0, gemm_bandwidth_efficiency=1.0)
    true = replace(true, attention_efficiency=0.5)
    found = measured_hardware(local(), "here", roofline_tables(true), true.memory_bytes_per_s)
    assert found.flops_per_s_32bit == pytest.approx(6e10, rel=0.05)
    assert found.attention_efficiency == pytest.approx(0.5, rel=0.1)
    assert found.attention_bandwidth_efficiency == pytest.approx(true.attention_bandwidth_efficiency, rel=0.05)
    assert (found.name, found.gemm_efficiency) == ("here", 1.0)
    assert found.iteration_overhead_s == local().iteration_overhead_s  # not measured: as it was


def test_a_hardware_file_can_be_read_back(tmp_path: Path) -> None:
    hardware = replace(local(), name="here", host_link_latency_s=1.25e-5, memory_bytes_per_s=1.234567e10)
    path = write_hardware(hardware, tmp_path, "somewhere")
    assert path == tmp_path / "hardware/here.yaml"
    knobs: Any = OmegaConf.to_container(OmegaConf.load(path))
    found = build(Hardware, knobs, "hardware")
    assert found.memory_bytes_per_s == pytest.approx(hardware.memory_bytes_per_s, rel=1e-4)
    assert replace(found, memory_bytes_per_s=hardware.memory_bytes_per_s) == hardware


@pytest.mark.parametrize("name", ["llama-3-8b", "mistral-7b", "tiny", "peers"])
def test_the_preset_of_a_loaded_model_has_its_shape(name: str, tmp_path: Path) -> None:
    knobs: Any = OmegaConf.to_container(OmegaConf.load(LOCAL.parents[1] / f"model/{name}.yaml"))
    shape = model_shape(knobs)
    path = write_model(shape_preset(shape, "again"), tmp_path)
    again: Any = OmegaConf.to_container(OmegaConf.load(path))
    found = model_shape(again)
    assert found.num_params == pytest.approx(shape.num_params, rel=1e-3)
    assert replace(found, name=shape.name, num_params=shape.num_params) == shape


def test_the_disk_is_measured_and_leaves_nothing(tmp_path: Path) -> None:
    read, write, latency_s = measure_disk(tmp_path / "disk", 65_536, repeats=1)
    assert read > 1e6 and write > 1e6 and 0 <= latency_s < 1
    assert not list((tmp_path / "disk").glob("*")) if (tmp_path / "disk").exists() else True


def test_a_disk_that_cannot_be_used_is_a_line_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found, problem = attempt(lambda: measure_disk(tmp_path / "file", 65_536))
    assert found is None
    assert problem is not None and "\n" not in problem


def test_what_was_not_measured_stays_open() -> None:
    assert link_times(None, None).host_bytes_per_s is None
    found = link_times(HostTimes(1e9, 1e-4, 0.2), (2e9, 1e9, 1e-3))
    assert (found.host_bytes_per_s, found.duplex_loss, found.disk_write_bytes_per_s) == (1e9, 0.2, 1e9)
