"""Small models outside the paged cache: built anew or loaded, trained and judged by plain forward passes.

What trains a model knows batches of token ids as numpy arrays; torch and transformers stay in here.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from .lookup_start import start_lookup
from .model_knobs import RandomModel
from .models import architecture_config
from .tokenizers import quiet

Ids = NDArray[np.int64]
_STATE = "training_state.pt"


class PlainModel:
    """A causal language model on the CPU with the usual full attention.

    Parameters
    ----------
    module: as transformers made it.
    """

    def __init__(self, module: PreTrainedModel) -> None:
        self.module = module

    @classmethod
    def load(cls, folder: Path) -> PlainModel:
        """The weights that ``save_pretrained`` wrote to ``folder``, as float32.

        Raises
        ------
        OSError
            If there are none.
        """
        module = AutoModelForCausalLM.from_pretrained(
            os.fspath(folder), dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
        )
        return cls(module.eval().requires_grad_(False))

    @torch.inference_mode()
    def predicted(self, tokens: Ids) -> Ids:
        """The likeliest next token after each of ``tokens`` [batch, length]; the same shape."""
        logits = self.module(input_ids=torch.from_numpy(tokens), use_cache=False).logits
        return np.asarray(logits.argmax(-1).numpy(), np.int64)

    @torch.inference_mode()
    def surprise_bits(self, tokens: Ids) -> NDArray[np.float64]:
        """-log2 of the probability of each of ``tokens`` [batch, length] but the first; [batch, length - 1]."""
        ids = torch.from_numpy(tokens)
        logits = self.module(input_ids=ids, use_cache=False).logits[:, :-1]
        nats = cross_entropy(logits.flatten(0, 1).double(), ids[:, 1:].flatten(), reduction="none")
        return np.asarray(nats.view(len(ids), -1).numpy() / np.log(2.0), np.float64)


class Trainee(PlainModel):
    """A model of random weights that learns from batches by AdamW; equal seeds and batches give equal weights.

    Parameters
    ----------
    knobs: the architecture; ``dtype`` is that of the saved weights, training is in float32.
    seed: of the first weights.
    lookup: start with :func:`start_lookup`.
    """

    def __init__(self, knobs: RandomModel, seed: int, *, lookup: bool = False) -> None:
        self.dtype = getattr(torch, knobs.dtype)
        config = architecture_config(replace(knobs, dtype="float32"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
            if lookup:
                start_lookup(module)
        super().__init__(module.train())
        self._optimizer = torch.optim.AdamW(module.parameters(), betas=(0.9, 0.98), weight_decay=0.01)

    def step(self, tokens: Ids, wanted: NDArray[np.bool_], rate: float) -> float:
        """One step towards the ``wanted`` ones of ``tokens`` [batch, length], at this learning rate; the mean loss of
        the wanted tokens (nats) before it. The first token of a row cannot be wanted."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(torch.from_numpy(tokens), torch.from_numpy(wanted)[:, 1:])
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self._optimizer.step()
        return float(loss.detach())

    def _loss(self, ids: Tensor, wanted: Tensor) -> Tensor:
        """Only wanted positions go through the output layer, which is a good part of a small model's work."""
        hidden = self.module.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        return cross_entropy(self.module.get_output_embeddings()(hidden[wanted]), ids[:, 1:][wanted])

    @contextlib.contextmanager
    def judged(self) -> Iterator[PlainModel]:
        """The model in eval mode, for a while."""
        self.module.eval()
        yield self
        self.module.train()

    def save(self, folder: Path) -> None:
        """Write config and weights to ``folder`` as a Hugging Face checkpoint, in the dtype of the knobs."""
        with quiet():
            copy.deepcopy(self.module).to(self.dtype).save_pretrained(folder)

    def pause(self, folder: Path, done: Mapping[str, Any]) -> None:
        """Write all that :meth:`resume` needs to go on, ``done`` included; what was there is replaced at once."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {"module": self.module.state_dict(), "optimizer": self._optimizer.state_dict(), "done": dict(done)}
        torch.save(state, folder / f"{_STATE}.new")
        (folder / f"{_STATE}.new").replace(folder / _STATE)

    def resume(self, folder: Path) -> dict[str, Any] | None:
        """Go on from what :meth:`pause` wrote to ``folder``: its ``done``; None if there is nothing."""
        if not (folder / _STATE).exists():
            return None
        state = torch.load(folder / _STATE, weights_only=True)
        self.module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        return dict(state["done"])
