"""How a sweep ends, or goes on: the comparison, the line for the user, the exit status."""

from __future__ import annotations

import contextlib
import os
import traceback

from ..metrics.files import replace_text
from ..sweeps import JobState, SweepFolder
from .showing import report
from .status import INTERRUPTED, RUN_FAILED, say


def resumes(folder: SweepFolder) -> str:
    """What is kept of an earlier attempt, and how to start anew."""
    counts = folder.counts()
    kept, failed = counts[JobState.FINISHED], counts[JobState.FAILED]
    half = counts[JobState.BEGUN]
    redone = [f"{failed} that failed"] if failed else []
    redone += [f"{half} half-written"] if half else []
    again = f", {' and '.join(redone)} will be done again" if redone else ""
    kept_line = f"{kept} of {folder.jobs} jobs are finished{again}"
    return f"resumes {os.path.relpath(folder.path)}: {kept_line}; resume=false starts anew"


def ended(folder: SweepFolder) -> int:
    """Compare all jobs, and the exit status of the sweep."""
    folders = [folder.folder(number) for number in range(folder.jobs)]
    failed = [path for path in folders if folder.state(int(path.name)) is not JobState.FINISHED]
    where = os.path.relpath(folder.path)
    try:
        report([path for path in folders if path.is_dir()], folder.path)
    except KeyboardInterrupt:
        folder.close("interrupted")
        return say(f"interrupted while comparing; the same command does the rest: {where}", INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the runs are there, and a report can be made of them later
        folder.close("interrupted")
        return _no_report(folder, error)
    folder.close("failed" if failed else "finished")
    if failed:
        say(f"{len(failed)} of {folder.jobs} jobs failed; the same command does them again", RUN_FAILED)
    return RUN_FAILED if failed else 0


def _no_report(folder: SweepFolder, error: Exception) -> int:
    """All runs are there, but not the comparison of them."""
    with contextlib.suppress(OSError):
        replace_text(folder.path / "error.txt", "".join(traceback.format_exception(error)))
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    told = os.path.relpath(folder.path / "error.txt")
    return say(f"the jobs have ended, but their comparison failed: {line}; see {told}", RUN_FAILED)


def interrupted(folder: SweepFolder) -> int:
    """After Ctrl-C: compare what has finished, and say how to go on. A second Ctrl-C leaves the comparison out."""
    done = folder.finished()
    try:
        if done:
            say(f"interrupted; comparing the {len(done)} of {folder.jobs} jobs that are finished (Ctrl-C: do not)")
            report(done, folder.path)
    except KeyboardInterrupt:
        pass
    except Exception as error:  # noqa: BLE001 - as above
        _no_report(folder, error)
    finally:
        folder.close("interrupted")
    which = f"{len(done)} of {folder.jobs} jobs are finished in {os.path.relpath(folder.path)}"
    return say(f"interrupted: {which}; the same command goes on with the rest", INTERRUPTED)
