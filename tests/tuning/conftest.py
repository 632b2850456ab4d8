"""Every kind of adapter with the options that change what it is, and models to put them into."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from app.domain.job_spec import AdapterSpec
from app.domain.peft_kinds import PEFT_KINDS
from tests.tasks.conftest import find_model, minilm, run_task
from tests.training.conftest import base, bases, run_attempt, tiny_base, tiny_trunk
from worker.training.parameter_optimizer import ParameterOptimizer
from worker.tuning import Tuning

__all__ = [
    "base",
    "bases",
    "find_model",
    "minilm",
    "run_attempt",
    "run_task",
    "tiny_base",
    "tiny_trunk",
]


@dataclass(frozen=True)
class Row:
    """One kind of adapter, small enough for a model of two layers."""

    kind: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def adapter(self) -> AdapterSpec:
        return AdapterSpec(self.kind, self.options)

    def __str__(self) -> str:
        return "-".join([self.kind, *map(str, self.options)])


_SMALL: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "adalora": {"init_r": 4, "target_r": 2},
    "vera": {"r": 16},
    "prompt-tuning": {"num_virtual_tokens": 4},
    "p-tuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "prefix-tuning": {"num_virtual_tokens": 4},
}

# LoRA with what changes its weights or its training.
LORA_ROWS = [
    Row("lora", {"r": 4, "use_rslora": True, "dropout": 0.1}),
    Row("lora", {"r": 4, "use_dora": True}),
    Row("lora", {"r": 4, "init": "pissa"}),
    Row("lora", {"r": 4, "lora_plus_ratio": 4.0}),
]
KIND_ROWS = [Row(kind, _SMALL.get(kind, {})) for kind in PEFT_KINDS]
ROWS = KIND_ROWS + LORA_ROWS


def trained_steps(tuning: Tuning, losses: Iterator[Tensor], rate: float = 1e-2) -> list[float]:
    """Take a step for each loss, as the learners do, and return the losses."""
    optimizer = ParameterOptimizer(tuning, weight_decay=0.01)
    found: list[float] = []
    for step, loss in enumerate(losses, start=1):
        loss.backward()  # type: ignore[no-untyped-call]
        extra = tuning.before_update(step)
        if extra is not None:
            extra.backward()  # type: ignore[no-untyped-call]
        optimizer.step(rate, 1.0)
        found.append(float(loss.detach()))
    return found


def plain_model(directory: Path, base_model: nn.Module) -> nn.Module:
    """Load an adapter as anyone else would."""
    loaded: nn.Module = PeftModel.from_pretrained(base_model, str(directory))
    return loaded.eval()


def largest_difference(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
