"""KIVI's packed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...framework.policy import Codec, Due

if TYPE_CHECKING:
    from torch import Tensor

# Parts, of p tokens: words hold 32 / bits codes, low bits first; groups of keys are padded to whole words.
KEY_CODES = "key_codes"  # int32 [..., words of p, head_dim]
KEY_SCALES, KEY_MINIMA = "key_scales", "key_minima"  # [..., groups, head_dim]
KEY_GROUPS = "key_groups"  # uint8 or int16 [..., p], the group of each token; only after some have left
VALUE_CODES = "value_codes"  # int32 [..., p, words of head_dim]
VALUE_SCALES, VALUE_MINIMA = "value_scales", "value_minima"  # [..., p, head_dim / group]


class KiviCodec(Codec):
    """See ``Kivi``, which checks the knobs."""

    def __init__(self, bits: int, group: int, residual: int, head_dim: int) -> None:
        self.bits, self.group, self.residual = bits, group, residual
        words = 32 // bits
        self.unit = max(group, words)  # tokens of whole groups and words
        if head_dim % group or head_dim % words:
            raise ValueError(
                f"compression=kivi: head_dim is {head_dim}, expected a multiple of group = {group} and of the {words} "
                "codes of a word"
            )

    def due(self, native: int) -> Due:
        return Due(native // self.residual * self.residual, max(0, native - self.residual))

    def packable(self, native: int) -> int:
        return max(0, native // self.residual - 1) * self.residual

    def round_keys(self, keys: Tensor) -> Tensor:
        from ...kernels.kivi import dequantise_keys, quantise_keys

        return dequantise_keys(quantise_keys(self._whole(keys), self.bits, self.group), self.bits)[
            ..., : keys.shape[-2], :
        ]

    def round_values(self, values: Tensor) -> Tensor:
        from ...kernels.kivi import dequantise_values, quantise_values

        return dequantise_values(quantise_values(values, self.bits, self.group), self.bits)

    def pack(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        from ...kernels.kivi import quantise_keys, quantise_values

        k = quantise_keys(self._whole(keys), self.bits, self.group)
        v = quantise_values(values, self.bits, self.group)
        return {
            KEY_CODES: k.codes,
            KEY_SCALES: k.scales,
            KEY_MINIMA: k.minima,
            VALUE_CODES: v.codes,
            VALUE_SCALES: v.scales,
            VALUE_MINIMA: v.minima,
        }

    def join(self, first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
        import torch

        tokens = _tokens(first)
        joined = {name: torch.cat((first[name], second[name]), dim=2) for name in second if name != KEY_GROUPS}
        if tokens % self.unit == 0 and KEY_GROUPS not in first.keys() | second.keys():
            return joined
        codes = torch.cat((self._key_codes(first), self._key_codes(second)), dim=2)
        behind = self._groups(second) + first[KEY_SCALES].shape[2]
        groups = torch.cat((self._groups(first), behind), dim=2)
        return joined | self._regrouped(codes, groups)

    def take(self, parts: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
        tokens = tokens.clamp(min=0)
        groups = self._groups(parts).gather(2, tokens)
        used = tokens.new_zeros(*tokens.shape[:2], parts[KEY_SCALES].shape[2]).scatter_(2, groups, 1)
        most = int(used.sum(dim=2).max()) if tokens.shape[2] else 0
        kept = used.argsort(dim=2, descending=True, stable=True)[..., :most]
        groups = (used.cumsum(dim=2) - 1).gather(2, groups)
        taken = {name: _rows(parts[name], kept) for name in (KEY_SCALES, KEY_MINIMA)}
        taken |= {name: _rows(parts[name], tokens) for name in (VALUE_CODES, VALUE_SCALES, VALUE_MINIMA)}
        return taken | self._regrouped(_rows(self._key_codes(parts), tokens), groups)

    def keys(self, parts: dict[str, Tensor]) -> Tensor:
        from ...kernels.kivi import Quantised, dequantise_keys, restore

        if KEY_GROUPS not in parts:
            packed = Quantised(parts[KEY_CODES], parts[KEY_SCALES], parts[KEY_MINIMA])
            return dequantise_keys(packed, self.bits)[..., : _tokens(parts), :]
        codes, groups = self._key_codes(parts), self._groups(parts)
        return restore(codes, _rows(parts[KEY_SCALES], groups), _rows(parts[KEY_MINIMA], groups))

    def values(self, parts: dict[str, Tensor]) -> Tensor:
        from ...kernels.kivi import Quantised, dequantise_values

        packed = Quantised(parts[VALUE_CODES], parts[VALUE_SCALES], parts[VALUE_MINIMA])
        return dequantise_values(packed, self.bits)

    def _whole(self, numbers: Tensor) -> Tensor:
        """``numbers`` [..., tokens, head_dim] up to whole groups and words: the last token again, which changes no
        scale."""
        import torch

        missing = -numbers.shape[-2] % self.unit
        if not missing:
            return numbers
        last = numbers[..., -1:, :].expand(*numbers.shape[:-2], missing, numbers.shape[-1])
        return torch.cat((numbers, last), dim=-2)

    def _key_codes(self, parts: dict[str, Tensor]) -> Tensor:
        """[..., p, head_dim]."""
        from ...kernels.kivi import unpack_codes

        return unpack_codes(parts[KEY_CODES], self.bits, -2)[..., : _tokens(parts), :]

    def _groups(self, parts: dict[str, Tensor]) -> Tensor:
        """int64 [..., p]."""
        import torch

        if KEY_GROUPS in parts:
            return parts[KEY_GROUPS].long()
        codes = parts[VALUE_CODES]
        groups = torch.arange(_tokens(parts), device=codes.device) // self.group
        return groups.expand(*codes.shape[:-2], -1)

    def _regrouped(self, codes: Tensor, groups: Tensor) -> dict[str, Tensor]:
        import torch

        from ...kernels.kivi import pack_codes

        few = not groups.numel() or int(groups.max()) < 256
        groups = groups.to(torch.uint8 if few else torch.int16)
        return {KEY_CODES: pack_codes(self._whole(codes), self.bits, -2), KEY_GROUPS: groups}


def _tokens(parts: dict[str, Tensor]) -> int:
    return int(parts[VALUE_CODES].shape[-2])


def _rows(numbers: Tensor, index: Tensor) -> Tensor:
    """``numbers`` [..., n, d] at ``index`` [..., m]: [..., m, d]."""
    return numbers.gather(-2, index[..., None].expand(*index.shape, numbers.shape[-1]))
