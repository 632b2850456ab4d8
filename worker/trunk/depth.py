"""How deep in a model a layer lies, as its name tells."""

from app.base_models.architecture import block_of
from app.domain.errors import InvalidInput

__all__ = ["all_are_frozen", "block_of", "is_above"]


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
