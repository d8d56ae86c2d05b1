"""The folder of a disk tier: whose it is, and that no other run uses it."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

VERSION = 1
_META, _LOCK, _INDEX, _SLABS = "meta.json", "lock", "index.bin", "slab-*.bin"


@dataclass(frozen=True, slots=True)
class FolderMeta:
    """What a folder holds. ``slab_pages``: pages a file."""

    page_format: str
    page_bytes: int
    num_pages: int
    slab_pages: int
    persist: bool
    version: int = VERSION


@dataclass(slots=True)
class DiskFolder:
    """A folder that this run holds locked until ``release``.

    ``fresh``: it held nothing to keep. ``made``: the folder itself is this run's.
    """

    path: Path
    meta: FolderMeta
    fresh: bool
    made: bool
    _lock_fd: int

    @property
    def index(self) -> Path:
        """The file of the index."""
        return self.path / _INDEX

    def slab(self, number: int) -> Path:
        """The file of slab ``number``."""
        return self.path / _SLABS.replace("*", f"{number:04d}")

    def release(self, clear: bool) -> None:
        """Give the folder up; with ``clear`` all that is the tier's goes, and the folder if this run made it."""
        if clear:
            _clear(self.path)
            (self.path / _LOCK).unlink(missing_ok=True)
        os.close(self._lock_fd)
        if clear and self.made and not any(self.path.iterdir()):
            self.path.rmdir()


def claim_folder(path: Path, meta: FolderMeta) -> DiskFolder:
    """Lock ``path`` (made if need be, but not what it is in: a disk may not be mounted) for pages as ``meta`` says.

    What a run that did not persist left behind is cleared; what a persistent one left is kept if it matches.

    Raises
    ------
    ValueError
        If the folder is in use, is not empty and not a tier's, belongs to other pages, or cannot be used at all.
    """
    try:
        made = not path.exists()
        if made and not path.parent.exists():
            raise ValueError(f"disk folder {path} cannot be made: there is no {path.parent}")
        path.mkdir(exist_ok=True)
        _refuse_strangers(path)
        lock_fd = _lock(path)
        try:
            fresh = _settle(path, meta)
        except BaseException:
            os.close(lock_fd)
            raise
    except OSError as error:
        raise ValueError(f"disk folder {path} cannot be used: {error.strerror or error}") from error
    return DiskFolder(path, meta, fresh, made, lock_fd)


def _refuse_strangers(path: Path) -> None:
    names = sorted(entry.name for entry in path.iterdir())
    if _META not in names and (foreign := [name for name in names if name not in (_LOCK, f"{_META}.new")]):
        raise ValueError(f"disk folder {path} must be empty or a disk tier's own; it holds {foreign[0]!r}")


def _lock(path: Path) -> int:
    """An open file that holds the folder's lock; the file may vanish under us while its owner clears up."""
    while True:
        fd = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(path / _LOCK)):
                return fd
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(fd)
            raise ValueError(f"disk folder {path} is in use by another run") from None
        os.close(fd)


def _settle(path: Path, meta: FolderMeta) -> bool:
    """Keep what ``path`` holds (False) or make it a fresh folder (True)."""
    found = _read_meta(path / _META)
    if found is not None and found.get("persist") is not False:
        if not meta.persist:
            raise ValueError(
                f"disk folder {path} holds pages that persist; expected none, as this run would remove them"
            )
        _compare(path, found, asdict(meta))
        return False
    _clear(path)
    new = path / f"{_META}.new"
    with new.open("w", encoding="utf-8") as file:
        json.dump({"kvarena": "disk tier", **asdict(meta)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path / _META)
    return True


def _read_meta(path: Path) -> dict[str, object] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("kvarena") != "disk tier":
        raise ValueError(f"{path} is not a disk tier's; expected a file that this program wrote")
    return found


def _compare(path: Path, found: dict[str, object], expected: dict[str, object]) -> None:
    wrong = [name for name, value in expected.items() if found.get(name) != value]
    if wrong:
        told = [name for name in wrong if name != "slab_pages"] or wrong  # it follows from the others
        lines = [f"{name} {found.get(name)!r} (expected {expected[name]!r})" for name in told]
        raise ValueError(f"disk folder {path} belongs to other pages: {', '.join(lines)}")


def _clear(path: Path) -> None:
    for file in [*path.glob(_SLABS), path / _INDEX, path / _META, path / f"{_META}.new"]:
        file.unlink(missing_ok=True)
