"""Activations of a model's layers, computed again in the backward pass instead of kept.

Source: Chen et al. 2016, https://arxiv.org/abs/1604.06174 (gradient checkpointing). What is kept
of a layer is its input alone, at the price of a second forward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from app.domain.errors import InvalidInput
from worker.trunk.trunk import Trunk
from worker.tuning.tuned_trunk import TunedTrunk

GRADIENT_CHECKPOINTING = "tunesmith.training.gradient_checkpointing"

# Notes how a pass is computed, and returns what sets that up again for a moment.
Remember = Callable[[], Callable[[], AbstractContextManager[None]]]


def nothing_to_remember() -> Callable[[], AbstractContextManager[None]]:
    """The pass depends on torch's own generators alone, which are restored anyway."""
    return nullcontext


class RecomputedLayers:
    """The repeated layers of a model, whose activations are computed again until `end`.

    Args:
        remember: called before a layer is computed for the first time.

    Raises:
        InvalidInput: it has no layers that are known to compute the same again.
    """

    def __init__(self, model: nn.Module, remember: Remember = nothing_to_remember) -> None:
        self._layers = list(_repeated(model))
        if not self._layers:
            raise InvalidInput(
                "the layers of this base model cannot be computed again",
                param=GRADIENT_CHECKPOINTING,
            )
        for layer in self._layers:
            # On the object, before its class: hooks stay outside, and `end` uncovers the method.
            object.__setattr__(layer, "forward", partial(_compute, layer.forward, remember))

    def end(self) -> None:
        """Keep activations again."""
        for layer in self._layers:
            object.__delattr__(layer, "forward")


def has_repeated_layers(model: nn.Module) -> bool:
    return any(True for _ in _repeated(model))


def remember_pass(trunk: Trunk) -> Remember:
    """Return what notes the pass of a trunk: others may begin before its backward pass."""
    return partial(_remember_pass, trunk)


def _repeated(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers that are not part of another one."""
    if isinstance(model, GradientCheckpointingLayer):
        yield model
        return
    for child in model.children():
        yield from _repeated(child)


def _compute(forward: Callable[..., Any], remember: Remember, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # A cache would be written to twice; nothing reads it in training.
    given = {name: None if name in _CACHES else value for name, value in kwargs.items()}
    as_it_was = remember()
    is_first = True

    def run(*inner: Any) -> Any:
        nonlocal is_first
        if is_first:
            is_first = False
            return forward(*inner, **given)
        with as_it_was():
            return forward(*inner, **given)

    return checkpoint(run, *args, use_reentrant=False)


_CACHES = frozenset({"past_key_values", "layer_past"})


def _remember_pass(trunk: Trunk) -> Callable[[], AbstractContextManager[None]]:
    routing = trunk.routing
    routed = routing.rows
    states = [(one, one.get_state()) for one in trunk.generators]
    dropouts = trunk.dropouts if isinstance(trunk, TunedTrunk) else ()
    modes = [(one, one.training) for one in dropouts]

    @contextmanager
    def as_it_was() -> Iterator[None]:
        now = routing.rows
        later = [(one, one.get_state()) for one, _ in states]
        later_modes = [(one, one.training) for one, _ in modes]
        routing.restore(routed)
        _set(states, modes)
        try:
            yield
        finally:
            routing.restore(now)
            _set(later, later_modes)

    return as_it_was


def _set(
    states: Sequence[tuple[torch.Generator, torch.Tensor]],
    modes: Sequence[tuple[nn.Module, bool]],
) -> None:
    for generator, state in states:
        generator.set_state(state)
    for module, is_training in modes:
        module.training = is_training
