"""The real backend: a Hugging Face model over one paged KV pool."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..policy import Compression, Policy, Selection, TokenTruncation
from ..workloads.tokens import IdLog
from .attention import CONTEXT, AttentionOptions, PagedContext, layer_options, layer_windows
from .contract import Batch, ModelShape, Segment, StepResult
from .host_pool import lazy_zeros
from .host_tuning import speed_up
from .listening import Listener
from .lossy.arranging import Arrangement, plain
from .lossy.contexts import ContextMemory
from .lossy.forms import LayerCall
from .lossy.narrowing import Pass
from .lossy.side import LossySide, check_positions, check_windows
from .lossy.view import Futures
from .measured_costs import MeasuredCosts
from .models import LoadedModel
from .packing import PackedBatch, Packer
from .rotary import RotaryTable, decouple
from .rotation import rotation_of
from .sharing import StoredLayers, check_sharing, skip_projections
from .torch_transfer import LayerGate

PROBE_TOKENS = 16


class TorchExecutor:
    """Implements :class:`contract.Executor`; one batch is one forward pass.

    Attributes
    ----------
    pool: [num_pages, stored layers, 2, num_kv_heads, page_size, head_dim], zeros at first.
    shape: the model's, with the dtype that this executor runs in and the layers that it stores.
    stored: where in the pool each layer of the model reads.
    max_steps: 1; every iteration is computed.
    forward_s: seconds of the last :meth:`run` inside the model's forward pass and the choice of tokens.
    listener: hears of every forward pass.
    futures: gives, for oracles, the full cache's attention of a conversation, float32 [L, H, T, T], rows by query; None
        where it is not known.
    """

    max_steps = 1
    sums_decodes = False

    def __init__(
        self,
        model: LoadedModel,
        num_pages: int,
        page_size: int,
        *,
        device: str = "cpu",
        dtype: str | None = None,
        threads: int | None = None,
        decoupled: bool = False,
        truncation: TokenTruncation | None = None,
        selection: Selection | None = None,
        compression: Compression | None = None,
        sharing: Mapping[int, int] | None = None,
    ) -> None:
        """Allocate the pool and prepare ``model``, whose module stays as it is.

        Parameters
        ----------
        model: loaded by :func:`models.load_model`; weights are shared if ``device`` and ``dtype`` are its own.
        num_pages, page_size: of the pool, >= 1; tokens per page.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None: the model's.
        threads: of a CPU, for the whole process; None: torch's choice.
        decoupled: cache un-rotated keys and rotate them where attention reads them.
        truncation, selection, compression: those that lose something; contexts are narrowed by the first and the last.
        sharing: layers that store no K/V, each with the earlier one whose K/V it uses; not with the three before.

        Raises
        ------
        ValueError
            If a size is not positive, the pool does not fit, positions cannot be decoupled in this model, or a policy
            cannot work on this model or with ``decoupled`` as it is.
        """
        check_positions(truncation, selection, compression, decoupled)
        _check_sizes(num_pages, page_size, threads)
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = torch.device(device)
        self._module = _own(model.module, self._device, None if dtype is None else getattr(torch, dtype))
        weight = next(self._module.parameters())
        self._device = weight.device
        self.shape: ModelShape = replace(model.shape, dtype_bytes=weight.element_size())
        self.stored = self._share(sharing or {}, [truncation, selection, compression])
        if weight.device.type == "cpu" and weight.dtype == torch.float32:
            speed_up(self._module)
        self._rotary: Callable[[Any], RotaryTable] | None = None
        self.pool = _allocate(self.shape, num_pages, page_size, weight)
        by_slot = truncation is not None and truncation.positions == "cache"
        self._packer = Packer(page_size, num_pages, self.shape.max_positions, self._device, by_slot=by_slot)
        self._costs = MeasuredCosts(self, page_size)
        self.forward_s = 0.0
        self.listener: Listener | None = None
        self.futures: Futures | None = None
        self._lossy: LossySide | None = None  # the probe of decoupled positions goes without
        if decoupled:
            self._decouple()
        self._lossy = self._side(model, truncation, selection, compression)

    def _side(
        self,
        model: LoadedModel,
        truncation: TokenTruncation | None,
        selection: Selection | None,
        compression: Compression | None,
    ) -> LossySide | None:
        """What carries out policies that lose something; None if there are none."""
        if truncation is not None or compression is not None:
            check_windows(self.shape, layer_windows(self._module))
        elif selection is None:
            return None
        asks = truncation is not None and truncation.needs.queries > 0
        rotation = rotation_of(model) if asks else None
        return LossySide(self.pool, self.shape.num_heads, truncation, selection, compression, rotation)

    @property
    def costs(self) -> MeasuredCosts:
        """Measured on this machine when first asked for."""
        return self._costs

    def run(self, batch: Batch) -> StepResult:
        """Compute ``batch``. ``tokens`` are the model's own greedy choices, whatever is forced.

        ``stall_s`` is a part of ``duration_s`` and may be one of ``forward_s``: on a GPU only the waits of the host (a
        layer's copy that was not even queued); what the compute stream waits for is not told apart.

        Raises
        ------
        ValueError
            If ``batch.steps`` is not 1 or a segment does not fit its page table or the model.
        RuntimeError
            If pages that the batch reads did not arrive.
        """
        if batch.steps != 1:
            raise ValueError(f"batch.steps is {batch.steps}, expected 1: a real model computes every step")
        if not batch.segments:
            return StepResult([], 0.0, 0.0)
        start_s = perf_counter()
        gate = LayerGate(batch.waits, batch.loads)
        packed = self._packer.pack(batch.segments)
        gate.enter()
        tokens, slots = self._step(batch.segments, packed, gate)
        end_s = perf_counter()
        return StepResult(tokens, end_s - start_s, self.forward_s, gate.stall_s, slots=slots)

    @torch.inference_mode()
    def _step(self, segments: list[Segment], packed: PackedBatch, gate: LayerGate) -> tuple[list[int], dict[int, int]]:
        """Tokens, and the slots that narrowed contexts take now, where fewer."""
        start_s = perf_counter()
        narrowed, arrangement = self._arranged(segments, packed)
        logits = self._forward(segments, packed, arrangement, gate)
        tokens = self._tokens(logits)
        self.forward_s = perf_counter() - start_s
        if self.listener is not None:
            self.listener.chose(segments, logits)
        if self._lossy is None or narrowed is None:
            return tokens, {}
        slots = self._lossy.settle(narrowed, self.futures)
        if self._device.type == "cuda":  # copies to the host take what an iteration wrote to be complete
            torch.cuda.synchronize(self._device)
        return tokens, slots

    def warm_up(self, num_tokens: int = 512) -> None:
        """Compile and load what the first batches would wait for. Writes no K/V."""
        longest = min(num_tokens, self.shape.max_positions)
        log, table = IdLog(np.zeros(longest, np.int32)), np.zeros(longest, np.int32)
        for length in (longest, 1):
            self.run(Batch([Segment(-1, log, 0, length, table, write=False, sample=True)] * 2))

    @torch.inference_mode()
    def logits(self, segments: list[Segment], gate: LayerGate | None = None) -> Tensor:
        """Compute ``segments`` as :meth:`run` does; logits after the sampled ones, [num_sampled, vocab_size].

        Each layer waits for what ``gate`` says.

        Raises
        ------
        ValueError
            As :meth:`run`, and of segments of narrowed contexts: only that can say what is left of them.
        """
        if any(segment.narrowing is not None for segment in segments):
            raise ValueError("logits() takes no segments of narrowed contexts; expected run() with a listener")
        packed = self._packer.pack(segments)
        return self._forward(segments, packed, self._arranged(segments, packed)[1], gate or LayerGate())

    def memory(self, context: int) -> ContextMemory | None:
        """What is remembered of the narrowed context of that number, for those who measure; None if nothing is."""
        return None if self._lossy is None else self._lossy.memory(context)

    def attention_options(self) -> list[AttentionOptions]:
        """What each layer asks of attention: scale, window, soft cap. Runs one token through the model."""
        return layer_options(self._module)

    def forget(self, context: int) -> None:
        """Drop what is remembered of the narrowed context of that number, if anything is."""
        if self._lossy is not None:
            self._lossy.forget(context)

    def _arranged(self, segments: list[Segment], packed: PackedBatch) -> tuple[Pass | None, Arrangement]:
        return (None, plain(packed)) if self._lossy is None else self._lossy.begin(segments, packed)

    def _forward(
        self, segments: list[Segment], packed: PackedBatch, arrangement: Arrangement, gate: LayerGate
    ) -> Tensor:
        hears = arrangement.hears
        if self.listener is not None:
            hears = (*hears, partial(_tell, self.listener, segments))
        context = PagedContext(
            pool=self.pool,
            page_table=arrangement.page_table,
            query_starts=arrangement.query_starts,
            positions=arrangement.positions,
            slots=packed.slots,
            rotary=self._rotary,
            position_ids=packed.position_ids,
            gate=gate,
            rows=arrangement.rows,
            formed=arrangement.formed,
            hears=hears,
            stored=self.stored,
        )
        out = self._module(
            input_ids=packed.input_ids[None],
            position_ids=packed.position_ids[None],
            use_cache=False,
            logits_to_keep=packed.sampled,
            **{CONTEXT: context},
        )
        logits: Tensor = out.logits[0]
        return logits

    def _share(self, sharing: Mapping[int, int], others: Sequence[Policy | None]) -> StoredLayers:
        """Let layers use an earlier one's K/V."""
        if not sharing:
            return StoredLayers.of(self.shape.num_layers, {})
        for policy in others:
            if policy is not None:
                raise ValueError(f"{policy.family} is {policy.name!r}, but layers share K/V; expected whole contexts")
        sharing = check_sharing(sharing, layer_windows(self._module))
        stored = StoredLayers.of(self.shape.num_layers, sharing)
        self.shape = replace(self.shape, kv_layers=stored.own)
        skip_projections(self._module, sharing)
        return stored

    def duration_until(self, batch: Batch, limit_s: float) -> int:
        """1: every call is one step."""
        return 1

    def close(self) -> None:
        """Free the pool and the weights."""
        self.pool = self.pool.new_empty(0)
        self._module = nn.Module()

    def _decouple(self) -> None:
        """Take the rotation out of the model, and make sure that its logits stay (a layer may be built without one)."""
        length = min(PROBE_TOKENS, self.shape.max_positions, self.pool.shape[0] * self.pool.shape[4])
        log = IdLog(np.arange(length, dtype=np.int32) % self.shape.vocab_size)
        table = np.arange(self.pool.shape[0], dtype=np.int32)
        probe = [Segment(-1, log, 0, length, table, sample=True)]
        before = self.logits(probe).float()
        self._rotary = decouple(self._module, self.shape.max_positions)
        error = (self.logits(probe).float() - before).abs().max()
        if error > before.abs().max() * 4 * torch.finfo(self.pool.dtype).eps ** 0.5:
            raise ValueError(
                f"decoupled positions change the logits of {self.shape.name!r} by {float(error):.3g}; "
                "some of its layers rotate in a way of their own"
            )
        self.pool[: -(-length // self.pool.shape[4])] = 0

    def _tokens(self, logits: Tensor) -> list[int]:
        if self._device.type == "cuda" and not logits.shape[0]:
            torch.cuda.synchronize(self._device)
        chosen: list[int] = logits.argmax(dim=-1).tolist()  # waits for a GPU
        return chosen


def _tell(listener: Listener, segments: list[Segment], call: LayerCall, out: Tensor) -> None:
    listener.attended(call.layer, segments, call.query, out)


def _check_sizes(num_pages: int, page_size: int, threads: int | None) -> None:
    if num_pages < 1 or page_size < 1:
        raise ValueError(f"the pool has {num_pages} pages of {page_size} tokens, expected at least 1 of each")
    if threads is not None and threads < 1:
        raise ValueError(f"backend.threads is {threads}, expected at least 1")


def _own(module: nn.Module, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    """A copy of ``module`` that may be changed: it shares the weights where device and dtype agree."""
    first = next(module.parameters())
    same_device = first.device == device or (device.index is None and first.device.type == device.type)
    if same_device and dtype in (None, first.dtype):
        return copy.deepcopy(module, {id(w): w for w in (*module.parameters(), *module.buffers())})
    return copy.deepcopy(module).to(device=device, dtype=dtype)


def _allocate(shape: ModelShape, num_pages: int, page_size: int, like: Tensor) -> Tensor:
    """The pool: zeros, so that what a masked read meets beyond a context's end is finite."""
    size = (num_pages, shape.stored_layers, 2, shape.num_kv_heads, page_size, shape.head_dim)
    try:
        if like.device.type == "cpu":
            return lazy_zeros(size, like.dtype)
        return torch.zeros(size, dtype=like.dtype, device=like.device)
    except (RuntimeError, MemoryError) as error:
        need = num_pages * page_size * shape.kv_bytes_per_token
        raise ValueError(
            f"the KV pool of {num_pages} pages takes {need} bytes, which {like.device} does not have"
        ) from error
