"""The forms of a run: the one place that knows which module has them."""

from __future__ import annotations

from ...policy import Compression, Selection
from .codec import CodecForm
from .forms import Form, PackingForm
from .frozen import PlaneForm
from .selecting import SelectingForm


def packing_form(compression: Compression | None, head_dim: int) -> PackingForm:
    """What packs planes of different length, or what ``compression`` packs.

    Raises
    ------
    ValueError
        If ``compression`` does not work on K/V of ``head_dim`` numbers.
    """
    codec = None if compression is None else compression.codec(head_dim)
    return PlaneForm() if codec is None else CodecForm(codec)


def selecting_form(selection: Selection) -> Form:
    """What attends to the pages that ``selection`` chooses."""
    return SelectingForm(selection)
