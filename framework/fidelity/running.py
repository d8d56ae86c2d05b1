"""One run of a workload, real or simulated, with the parts of ``task=serve``: its rows and its summary in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backends import open_backend, window_of
from ..composition import Parts, refusing
from ..metrics import RunRecorder, summarize, write_summary
from ..opening import check_sizes, open_workload
from ..run_info import RunInfo
from ..serve import Server, describe


@dataclass(frozen=True)
class Contestant:
    """A system: its config, and the parts of its real runs."""

    config: Mapping[str, Any]
    info: RunInfo
    parts: Parts

    @property
    def name(self) -> str:
        """Of the system."""
        return self.info.label


def run_once(contestant: Contestant, parts: Parts, folder: Path) -> dict[str, Any]:
    """Serve the workload of ``parts``, which are the contestant's own or its simulation, into ``folder``.

    Raises
    ------
    ConfigError
        If model, memory and workload do not fit one another.
    """
    with ExitStack() as stack:
        with refusing(f"system={contestant.name}: "):
            backend = open_backend(parts, folder)
            stack.callback(backend.close)
            workload = open_workload(parts, backend.shape.vocab_size, backend.tokenizer)
            check_sizes(parts, workload, window_of(parts, backend))
        recorder = stack.enter_context(RunRecorder(folder))
        server = Server(parts, backend, workload)
        server.run(recorder, lambda stage: None)
        recorder.close()
        backend.finish_copies()
        rows = (recorder.requests, recorder.steps, recorder.transfers)
        kind = "simulated" if parts.simulated else "torch"
        known = describe(contestant.config, contestant.info, parts)
        about = {**known, "backend": kind, "workload": workload.name, "model": backend.shape.name}
        about |= {"hardware": parts.hardware.name}
        summary = summarize(*rows, about, totals=server.totals(), prices=parts.prices)
        write_summary(folder, summary)
    return summary
