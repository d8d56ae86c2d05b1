"""Whose account it is."""

from __future__ import annotations


def default_entity() -> str:
    """The entity that the key's account uses.

    Raises
    ------
    RuntimeError
        If it has none.
    """
    import wandb

    entity = wandb.Api().default_entity
    if not entity:
        raise RuntimeError("the account has no default entity; give --entity")
    return str(entity)
