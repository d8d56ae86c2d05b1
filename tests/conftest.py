"""What tests of every floor need."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Mount = Callable[[Path, str], Path]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mounts a file system in memory, with the given options, on a folder that it makes."""
    mounted: list[Path] = []

    def mount_memory(folder: Path, options: str) -> Path:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("may not mount a file system")
        mounted.append(folder)
        return folder

    yield mount_memory
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
