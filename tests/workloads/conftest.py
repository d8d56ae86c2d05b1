from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kvarena.framework.workloads import ByteTokenizer, make_workload


@pytest.fixture
def data() -> Path:
    """The folder of real data; tests that need it are skipped without."""
    if "KVARENA_DATA" not in os.environ:
        pytest.skip("KVARENA_DATA is not set")
    return Path(os.environ["KVARENA_DATA"])


@pytest.fixture
def from_lines(tmp_path):
    """Open a workload whose file holds the given lines (texts, or objects written as JSON)."""

    def open_lines(name, lines, *, symbolic=True, vocab_size=256, **knobs):
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        given = {"path": str(path), **knobs}
        return make_workload(name, given, 0, vocab_size, ByteTokenizer(256), symbolic)

    return open_lines
