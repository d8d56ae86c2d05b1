"""Workloads by name, and the YAMLs that hold their knobs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from importlib.resources import files

import pytest
import yaml

from kvarena.framework.workloads import ByteTokenizer, PieceTokenizer, make_workload, workload_schema
from kvarena.framework.workloads.build import WORKLOADS


def test_an_unknown_workload_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown workload 'moncake'; there are jsonl, .*did you mean 'mooncake'"):
        make_workload("moncake", {}, 0, 10, None, True)


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_yaml_lists_every_knob_with_its_default(name):
    values = yaml.safe_load((files("kvarena.conf") / "workload" / f"{name}.yaml").read_text())
    assert next(iter(values)) == "name" and values.pop("name") == name
    assert values == {f.name: f.default for f in fields(workload_schema(name))}


def test_there_is_no_yaml_without_a_workload():
    found = {yaml.safe_load(path.read_text())["name"] for path in (files("kvarena.conf") / "workload").iterdir()}
    assert found == set(WORKLOADS)


@pytest.mark.parametrize("name", ["jsonl", "mooncake", "sharegpt"])
def test_a_missing_file_is_one_clear_line(name, tmp_path):
    for path, message in [
        (None, "workload.path is null"),
        (tmp_path / "no.json", "no.json does not exist"),
        (tmp_path, "is a folder"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            make_workload(name, {"path": path and str(path)}, 0, 10, None, True)
        assert "\n" not in str(error.value)


def test_tokenizers():
    assert ByteTokenizer(256).encode("aé") == [97, 0xC3, 0xA9]
    assert ByteTokenizer(100).encode("a") == [97] and ByteTokenizer(90).encode("a") == [7]
    with pytest.raises(ValueError, match="vocab_size is 0"):
        ByteTokenizer(0)
    pieces = PieceTokenizer(50_000)
    text = "An extraordinarily long word, twice:\n\textraordinarily."
    assert len(pieces.encode(text)) == 12
    assert pieces.encode(text + " More") == [*pieces.encode(text), *pieces.encode(" More")]
    assert pieces.encode(" word") != pieces.encode(" words") and pieces.encode("") == []


def test_importing_the_workloads_is_light():
    heavy = ("torch", "transformers", "datasets", "hydra")
    code = f"import sys, kvarena.framework.workloads; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
