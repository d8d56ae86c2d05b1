"""Building and loading the C++ kernels."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from kvarena.kernels import native
from kvarena.kernels.paged_attention import paged_attention


@pytest.fixture
def forgotten() -> Any:
    """The library is looked for anew in the test, and after it."""
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def test_cache_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.cache_folder() == tmp_path / "kvarena"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert native.cache_folder() == Path.home() / ".cache" / "kvarena"


def test_without_a_compiler_torch_computes_after_one_warning(
    monkeypatch: pytest.MonkeyPatch, problems: Any, forgotten: None
) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    call = problems.make_call(((3, 20), (1, 5)))
    arguments = (call.query, call.pool, call.page_table, call.query_starts, call.positions)
    with pytest.warns(RuntimeWarning, match=r"slower torch operations: no C\+\+ compiler found") as caught:
        first, second = (paged_attention(*arguments, scale=call.scale) for _ in range(2))
    assert len(caught) == 1
    assert torch.equal(first, second)
    problems.assert_close(problems.copy_call(call, out=first, lse=None))


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\n[ $1 = --version ] || { echo 'no room' >&2; exit 1; }\n", encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(native.BuildError, match="no room"):
        native.load(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    if native.library() is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "file").touch()
    with pytest.raises(native.BuildError, match="file"):
        native.load(tmp_path / "file" / "cache")


@pytest.mark.kernels
def test_many_builders_leave_one_library(tmp_path: Path) -> None:
    if native.library() is None:
        pytest.skip("no C++ compiler")
    with ThreadPoolExecutor(3) as pool:
        libraries = list(pool.map(native.load, [tmp_path] * 3))
    files = list(tmp_path.iterdir())
    assert len(files) == 1 and {library._name for library in libraries} == {str(files[0])}
    modified = files[0].stat().st_mtime_ns
    native.load(tmp_path)
    assert files[0].stat().st_mtime_ns == modified


def test_a_cpu_run_imports_no_triton(problems: Any) -> None:
    script = """
        import sys, torch
        from kvarena.kernels.cache_write import write_pages
        from kvarena.kernels.paged_attention import paged_attention
        before = "triton" in sys.modules
        row, pool, zero = torch.ones(1, 1, 4), torch.zeros(1, 2, 1, 1, 4), torch.zeros(1, dtype=torch.int32)
        write_pages(row, row, pool, torch.zeros(1, dtype=torch.int64))
        result = paged_attention(row, pool, zero[None], torch.tensor([0, 1], dtype=torch.int32), zero, scale=1.0)
        assert torch.equal(result, row)
        assert not before and "triton" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
