"""Compile the C++ kernels once per machine and load them.

The library is kept in ``$XDG_CACHE_HOME/kvarena`` under a name made of sources, compiler, torch and CPU, so that a
change of any of them builds anew. It is built under another name and renamed, so that parallel processes never see
half a file.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch  # before any load: the library uses the OpenMP runtime that torch brings

SOURCES = ("paged_attention.cpp", "attention_statistics.cpp", "cache_write.cpp", "page_copy.cpp")
HEADERS = ("vectors.h", "product.h", "tiles.h")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC")

# In this order: OpenMP from the runtime that torch has loaded (two runtimes in one process spin against each other),
# from the compiler's own, and none.
OPENMP_CHOICES: tuple[tuple[Sequence[str], Sequence[str]], ...] = (
    (("-fopenmp",), ()),
    (("-fopenmp",), ("-fopenmp",)),
    (("-Wno-unknown-pragmas",), ()),
)


class BuildError(RuntimeError):
    """The kernels could not be compiled or loaded; the message says why."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels' library, or None, after one warning, where it cannot be built."""
    try:
        return load(cache_folder())
    except BuildError as error:
        warnings.warn(
            f"no compiled CPU attention, using slower torch operations: {error}", RuntimeWarning, stacklevel=3
        )
        return None


def cache_folder() -> Path:
    """Where libraries are kept: ``$XDG_CACHE_HOME/kvarena``, by default ``~/.cache/kvarena``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "kvarena"


def load(folder: Path) -> ctypes.CDLL:
    """Load the library of this machine from ``folder``, building it there first if it is missing.

    Raises
    ------
    BuildError: there is no C++ compiler, it fails, or ``folder`` cannot be written.
    """
    compiler = find_compiler()
    try:
        path = folder / f"kernels-{_fingerprint(compiler)}.so"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _build(compiler, path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(str(error)) from error


def find_compiler() -> str:
    """Path of the C++ compiler: ``$CXX``, else the first of g++, clang++, c++."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    for name in names:
        if found := shutil.which(name):
            return found
    raise BuildError(f"no C++ compiler found (tried {', '.join(names)}); install g++ or set CXX")


def _fingerprint(compiler: str) -> str:
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for name in (*SOURCES, *HEADERS):
        digest.update((here / name).read_bytes())
    digest.update(_run([compiler, "--version"]).encode())
    digest.update(repr((FLAGS, OPENMP_CHOICES, torch.__version__, torch.__file__, _cpu())).encode())
    return digest.hexdigest()[:16]


def _cpu() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    kinds = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.split("\t")[0].strip() in kinds}))


def _build(compiler: str, path: Path) -> None:
    """Build the library at ``path`` with the first choice of OpenMP that loads."""
    failure: Exception | None = None
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as work:
        for compile_flags, link_flags in OPENMP_CHOICES:
            built = Path(work) / "kernels.so"
            try:
                _compile(compiler, Path(work), built, compile_flags, link_flags)
                ctypes.CDLL(str(built))
            except (BuildError, OSError) as error:
                failure = failure or error
                continue
            os.replace(built, path)
            return
    raise BuildError(f"{compiler} failed: {failure}")


def _compile(compiler: str, work: Path, built: Path, compile_flags: Sequence[str], link_flags: Sequence[str]) -> None:
    here = Path(__file__).parent
    objects = []
    for name in SOURCES:
        objects.append(str(work / f"{name}.o"))
        _run([compiler, *FLAGS, *compile_flags, "-c", str(here / name), "-o", objects[-1]])
    _run([compiler, "-shared", *objects, *link_flags, "-o", str(built)])


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{' '.join(command)}: {error.stderr.strip()[-500:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(str(error)) from error
    return done.stdout
