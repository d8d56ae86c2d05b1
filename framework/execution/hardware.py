"""The machine that a simulated run pretends to be: the schema of ``conf/hardware/*.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, fields

_FRACTIONS = (
    "memory_utilization",
    "gemm_efficiency",
    "gemm_bandwidth_efficiency",
    "attention_efficiency",
    "attention_bandwidth_efficiency",
)
_RATES = (
    "memory_bytes_per_s",
    "flops_per_s_16bit",
    "flops_per_s_32bit",
    "interconnect_bytes_per_s",
    "host_link_bytes_per_s",
    "disk_read_bytes_per_s",
    "disk_write_bytes_per_s",
    "network_bytes_per_s",
)


@dataclass(frozen=True, slots=True)
class Hardware:
    """One serving instance: ``devices`` equal accelerators that share a model by tensor parallelism, and their host.

    Attributes
    ----------
    devices: accelerators of the instance (tensor-parallel degree).
    memory_bytes, memory_bytes_per_s: capacity and peak bandwidth of one device's memory.
    memory_utilization: share of the device memory that weights and K/V may take together.
    flops_per_s_16bit, flops_per_s_32bit: dense peak of one device for 2-byte and 4-byte types.
    gemm_efficiency, attention_efficiency: share of that peak that large GEMMs and prefill attention reach.
    gemm_bandwidth_efficiency, attention_bandwidth_efficiency: share of the peak bandwidth that small GEMMs (weight
        reads) and decode attention (K/V reads) reach.
    iteration_overhead_s, sequence_overhead_s: time per iteration, and per sequence in it, outside the model.
    layer_overhead_s: launches and small kernels of one layer.
    interconnect_bytes_per_s, interconnect_latency_s: bus bandwidth of a ring all-reduce and the time of an empty one.
    host_links: how many host links work in parallel; ``host_link_bytes_per_s`` is that of one, each way.
    duplex_loss: share of its bandwidth that each direction loses while both run.
    host_memory_bytes: of the whole instance.
    disk_*, network_*: of the whole instance; the network is the way to another instance.
    *_usd_*: prices, None where unknown.
    """

    name: str
    devices: int
    memory_bytes: int
    memory_utilization: float
    memory_bytes_per_s: float
    flops_per_s_16bit: float
    flops_per_s_32bit: float
    gemm_efficiency: float
    gemm_bandwidth_efficiency: float
    attention_efficiency: float
    attention_bandwidth_efficiency: float
    iteration_overhead_s: float
    sequence_overhead_s: float
    layer_overhead_s: float
    interconnect_bytes_per_s: float
    interconnect_latency_s: float
    host_links: int
    host_link_bytes_per_s: float
    host_link_latency_s: float
    duplex_loss: float
    host_memory_bytes: int
    disk_read_bytes_per_s: float
    disk_write_bytes_per_s: float
    disk_latency_s: float
    network_bytes_per_s: float
    network_latency_s: float
    device_usd_per_hour: float | None = None
    dram_usd_per_gb_hour: float | None = None
    ssd_usd_per_gb_hour: float | None = None

    def __post_init__(self) -> None:
        for count in ("devices", "host_links", "memory_bytes"):
            self._require(count, getattr(self, count) >= 1, ">= 1")
        for fraction in _FRACTIONS:
            self._require(fraction, 0 < getattr(self, fraction) <= 1, "in (0, 1]")
        for rate in _RATES:
            self._require(rate, getattr(self, rate) > 0, "> 0")
        self._require("duplex_loss", 0 <= self.duplex_loss < 1, "in [0, 1)")
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and field.name != "name":
                self._require(field.name, value >= 0, ">= 0")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"hardware {self.name!r}: {name}={getattr(self, name)!r} must be {allowed}")

    def flops_per_s(self, dtype_bytes: int) -> float:
        """Dense peak of one device for a type of ``dtype_bytes``."""
        return self.flops_per_s_32bit if dtype_bytes >= 4 else self.flops_per_s_16bit

    def free_bytes(self, weight_bytes: int) -> int:
        """Bytes left for K/V on all devices together once the weights are loaded; 0 if they do not fit."""
        return max(0, int(self.devices * self.memory_bytes * self.memory_utilization) - weight_bytes)

    @property
    def host_bytes_per_s(self) -> float:
        """All host links together, one direction."""
        return self.host_links * self.host_link_bytes_per_s
