"""How much memory the activations of a pass take, and whether they are kept."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

# The rest is for gradients, the optimizer, logits and whatever else runs on the machine.
_SHARE_OF_FREE = 0.5


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether activations are computed again, and the reason for people."""

    is_recomputed: bool
    reason: str


def choose(
    asked: bool | Literal["auto"], pass_bytes: int, free_bytes: int, *, is_possible: bool
) -> Choice:
    """Return what was asked for, or what the memory decides.

    Args:
        pass_bytes: of the activations of the largest pass.
        is_possible: the model has layers that can be computed again.
    """
    told = f"a pass keeps {_mebibytes(pass_bytes)} of activations, {_mebibytes(free_bytes)} is free"
    if asked != "auto":
        return Choice(asked, f"gradient_checkpointing = {asked}: {told}")
    needs = pass_bytes > _SHARE_OF_FREE * free_bytes
    if needs and not is_possible:
        told += "; the layers of this base model cannot be computed again"
    is_recomputed = needs and is_possible
    return Choice(is_recomputed, f"gradient_checkpointing = {is_recomputed} (auto: {told})")


def activation_bytes(weights: Iterable[Tensor], compute: Callable[[], Any]) -> int:
    """Return the bytes that a forward pass keeps for its backward pass, weights apart.

    Args:
        weights: of the model, and what is trained of it.
        compute: the pass, with gradients; torch's own generators are left as they were.
    """
    own = {one.untyped_storage().data_ptr() for one in weights}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def give_back(tensor: Tensor) -> Tensor:
        return tensor

    with (
        torch.random.fork_rng(),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(keep, give_back),
    ):
        # Held until all is counted: no storage takes the place of another.
        held = compute()
    del held
    return sum(sizes.values())


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB"
