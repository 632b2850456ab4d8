"""How deep in a model a layer lies, as its name tells."""

from app.domain.errors import InvalidInput


def block_of(path: str) -> int | None:
    """Return the number of the block that a module is part of; None of what is in no block.

    Models number their blocks from below: `model.layers.3.mlp.up_proj` is in block 3.
    """
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def is_above(path: str, frozen_layers: int) -> bool:
    """Say whether a module lies above the lowest blocks that stay as they are."""
    block = block_of(path)
    return frozen_layers == 0 or (block is not None and block >= frozen_layers)


def all_are_frozen(frozen_layers: int) -> InvalidInput:
    """Return the error of a run that leaves nothing to train."""
    return InvalidInput(
        f"freeze_layers {frozen_layers} leaves no layer of this base model to train",
        param="tunesmith.training.freeze_layers",
    )
