"""What a session of text generation trains: an adapter on the shared trunk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from worker.training.learner import StateTensors
from worker.training.parameter_optimizer import ParameterOptimizer
from worker.training.session import Session
from worker.trunk.lora import LoraAdapter
from worker.trunk.peft_format import load_adapter, save_adapter
from worker.trunk.trunk import Trunk
from worker.tuning import Tuning
from worker.tuning.tuned_trunk import TunedTrunk


class TrainedWeights(Protocol):
    """The weights of one run: how they get onto the trunk, onto disk and back."""

    def attach(self, trunk: Trunk, session: Session) -> None:
        """Let the session's rows go through the weights."""

    def detach(self, trunk: Trunk, session: Session) -> None:
        """Leave the trunk as it was."""

    def after_step(self, step: int) -> None:
        """Do what the kind of adapter does between steps."""

    def save(self, directory: Path) -> None:
        """Write the adapter in the format of `peft`."""

    def load(self, directory: Path, tensors: StateTensors) -> None:
        """Take the weights over from a checkpoint. Raises: InvalidInput."""

    def state_tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return what a resumed run needs that the adapter on disk does not have."""


class LoraWeights:
    """See `TrainedWeights`: a LoRA adapter, whose tensors are in the optimizer's flat one.

    Args:
        base_model_name: written into the adapter, so that it loads anywhere.
    """

    def __init__(self, adapter: LoraAdapter, base_model_name: str) -> None:
        self._adapter = adapter
        self._base_model_name = base_model_name

    def attach(self, trunk: Trunk, session: Session) -> None:
        trunk.attach(session.name, self._adapter, session.generator)

    def detach(self, trunk: Trunk, session: Session) -> None:
        trunk.detach(session.name)

    def after_step(self, step: int) -> None:
        return

    def save(self, directory: Path) -> None:
        save_adapter(directory, self._adapter, self._base_model_name)

    @torch.no_grad()
    def load(self, directory: Path, tensors: StateTensors) -> None:
        saved = load_adapter(directory)
        for path, pair in self._adapter.weights.items():
            pair.a.copy_(saved.weights[path].a)
            pair.b.copy_(saved.weights[path].b)

    def state_tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        return {}


class TunedWeights:
    """See `TrainedWeights`: a tuning of a base model that no one else uses.

    Args:
        trunk: with the model that the tuning changes.
        base_model_name: written into what is saved, so that it loads anywhere.
    """

    def __init__(self, trunk: TunedTrunk, tuning: Tuning, base_model_name: str) -> None:
        self._trunk = trunk
        self._tuning = tuning
        self._base_model_name = base_model_name

    def attach(self, trunk: Trunk, session: Session) -> None:
        self._trunk.generator = session.generator

    def detach(self, trunk: Trunk, session: Session) -> None:
        return

    def after_step(self, step: int) -> None:
        return

    def save(self, directory: Path) -> None:
        self._tuning.save(directory, self._base_model_name)

    def load(self, directory: Path, tensors: StateTensors) -> None:
        self._tuning.load_state_tensors(tensors)

    def state_tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        return self._tuning.state_tensors()


class TunedOptimizer(ParameterOptimizer):
    """See `session.Optimizer`: what the kind of adapter adds to the loss is added here."""

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        extra = self._tuning.before_update(self._updates + 1)
        if extra is not None:
            extra.backward()  # type: ignore[no-untyped-call]
        return super().step(learning_rate, max_grad_norm)
