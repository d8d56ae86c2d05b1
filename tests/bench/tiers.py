"""What a second tier is worth on the peers' workload: ``python tests/bench/tiers.py [--rounds N]``.

12 conversations x 5 turns in lockstep (see ``peers.py``), served by Pensieve: with device memory for everything, and
with 6,400 tokens of it, half of what the last turn needs, above a host tier or above a disk tier. Contestants take
turns within every round; a figure is the median over rounds. The tokens of all contestants must be the same. The goals:
with a host tier at least .60 of the prompt tokens cached and 80 % of the turns per second of ample memory, with a disk
tier 70 %.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from support.serving import serve

from kvarena.framework.metrics.records import RequestRecord

Outputs = dict[tuple[int, int], list[int]]
WORKLOAD = ("workload=rounds", "model=peers", "backend=torch")
ONE_TIER = ("memory.host_tokens=0", "memory.disk_tokens=0")


@dataclass
class Contestant:
    """``overrides`` of a run, and what its rounds gave.

    ``cached``: the share of prompt tokens that came from a tier. ``goals``: the least ratio to the turns per second of
    the first contestant, and the least share.
    """

    name: str
    overrides: tuple[str, ...]
    goals: tuple[float, float] | None = None
    turns_per_s: list[float] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)
    outputs: Outputs = field(default_factory=dict)

    def run(self, folder: Path) -> None:
        """One round; a disk tier's files lie in ``folder``."""
        served = serve(*WORKLOAD, *self.overrides, f"memory.disk_dir={folder}")
        records = served.recording.requests
        self.outputs = {(record.conversation, record.turn): record.output_ids for record in records}
        self.turns_per_s.append(len(records) / served.wall_s)
        self.cached.append(share_cached(records))

    def ratio(self, reference: Contestant) -> float:
        """Turns per second, as a part of those of ``reference`` in the same round."""
        pairs = zip(self.turns_per_s, reference.turns_per_s, strict=True)
        return statistics.median(own / other for own, other in pairs)

    def row(self, reference: Contestant) -> str:
        """A line of the table."""
        ratio, cached = self.ratio(reference), statistics.median(self.cached)
        equal = sum(self.outputs[key] == expected for key, expected in reference.outputs.items())
        goal = ""
        if self.goals is not None:
            met = ratio >= self.goals[0] and cached >= self.goals[1]
            goal = f"{self.goals[0]:.2f}, {self.goals[1]:.2f}: {'met' if met else 'missed'}"
        rate = statistics.median(self.turns_per_s)
        return f"{self.name:40}{rate:9.2f}{ratio:10.2f}{cached:12.3f}{f'{equal}/{len(self.outputs)}':>14}{goal:>22}"


def share_cached(records: Sequence[RequestRecord]) -> float:
    """Of all prompt tokens, history included."""
    reused = sum(record.reused_device + record.reused_host + record.reused_disk for record in records)
    return reused / sum(record.prompt_tokens + record.history_tokens for record in records)


def contestants() -> list[Contestant]:
    """The one with ample memory first."""
    pensieve, small = "system=pensieve", "memory.device_tokens=6400"
    host = ("memory.host_tokens=32768", "memory.disk_tokens=0")
    disk = ("memory.host_tokens=0", "memory.disk_tokens=32768")
    return [
        Contestant("pensieve, ample device memory", (pensieve, "memory.device_tokens=32768", *ONE_TIER)),
        Contestant("pensieve, 6,400 tokens + host tier", (pensieve, small, *host), goals=(0.80, 0.60)),
        Contestant("pensieve, 6,400 tokens + disk tier", (pensieve, small, *disk), goals=(0.70, 0.0)),
        Contestant("pensieve, 6,400 tokens alone", (pensieve, small, *ONE_TIER)),
        Contestant("vllm, 6,400 tokens alone", ("system=vllm", small, *ONE_TIER)),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disk-dir", type=Path, help="on the disk to measure; by default where temporary files go")
    arguments = parser.parse_args()
    runs = contestants()
    with tempfile.TemporaryDirectory(dir=arguments.disk_dir) as folder:
        for number in range(arguments.rounds):
            for contestant in runs:
                contestant.run(Path(folder) / "pages")
                line = f"{contestant.turns_per_s[-1]:.2f} turns/s, {contestant.cached[-1]:.3f} from cache"
                print(f"round {number}: {contestant.name}: {line}", file=sys.stderr)
    print(f"{torch.get_num_threads()} threads, {arguments.rounds} rounds, medians")
    print(f"{'':40}{'turns/s':>9}{'x ample':>10}{'from cache':>12}{'tokens equal':>14}{'goals':>22}")
    for contestant in runs:
        print(contestant.row(runs[0]))


if __name__ == "__main__":
    main()
