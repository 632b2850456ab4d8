"""Records that preferences and rewards are learnt from, and sessions of any method."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from app.domain.datasets import read_records
from app.domain.job_spec import JobSpec
from tests.training.conftest import SHORT_CHATS, Fields
from worker.training.methods import Method
from worker.training.records import DatasetBuilder, EncodedDataset
from worker.training.session import Session
from worker.trunk.lora import LoraAdapter
from worker.trunk.trunk import Trunk

# Whoever answers in the wanted form is preferred to whoever is rude.
PREFERENCES: list[Fields] = [
    {
        "input": {"messages": chat["messages"][:1]},
        "preferred_output": chat["messages"][1:],
        "non_preferred_output": [{"role": "assistant", "content": rude}],
    }
    for chat, rude in zip(
        SHORT_CHATS,
        ["No idea.", "Then brake less, will you?", "No.", "Read the sign", "So what? Buy one."],
        strict=True,
    )
]
FEEDBACK: list[Fields] = [
    {"prompt": ask, "completion": answer, "label": label}
    for ask, answer, label in [
        ("The red bike is", " in stock.", True),
        ("My brakes squeal, so", " brake less, will you?", False),
        ("A refund is", " on its way to you.", True),
        ("We open", " when we like.", False),
        ("A crack in the fork is", " dangerous: do not ride.", True),
    ]
]


def encode(trunk: Trunk, method: Method, records: list[Fields]) -> EncodedDataset:
    """Return records as a method takes them."""
    lines = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    builder = DatasetBuilder()
    for line, record in read_records(io.BytesIO(lines)):
        builder.add(line, method.encode(trunk.tokenizer, record, 256))
    return builder.build("training_file")


@contextmanager
def on_trunk(
    trunk: Trunk, session: Session, reference: LoraAdapter | None = None
) -> Iterator[None]:
    """Attach what a session trains, and what it compares with."""
    assert session.adapter is not None
    trunk.attach(session.name, session.adapter, session.generator)
    if reference is not None:
        assert session.reference is not None
        trunk.attach(session.reference, reference)
    try:
        yield
    finally:
        trunk.detach(session.name)
        if session.reference is not None:
            trunk.detach(session.reference)


def gradients(adapter: LoraAdapter) -> dict[str, Tensor]:
    """Return a copy of every gradient of an adapter, and clear it."""
    found: dict[str, Tensor] = {}
    for path, pair in adapter.weights.items():
        for side, tensor in (("A", pair.a), ("B", pair.b)):
            assert tensor.grad is not None
            found[f"{path}.{side}"] = tensor.grad.clone()
            tensor.grad.zero_()
    return found


def with_options(spec: JobSpec, **options: Any) -> JobSpec:
    return replace(spec, method="dpo", method_options=options)


def assert_same_gradients(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float
) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(one.abs().max()) for one in expected.values())
    assert largest > 1e-4
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=tolerance * largest, rtol=0)
