"""Activations that are computed again: the same gradients, for less memory."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from app.domain.errors import InvalidInput
from app.domain.job_spec import AdapterSpec, JobSpec, LoraSpec
from app.storage.local import LocalStorage
from tests.support.service import REPOSITORY
from tests.tasks.conftest import find_model, minilm, run_task, task_spec
from tests.training.conftest import SHORT_CHATS, Attempt, RunAttempt, job_spec, put_records
from tests.training.methods.conftest import PREFERENCES, with_options
from worker.training.activations import activation_bytes, choose
from worker.training.recomputation import RecomputedLayers, remember_pass
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.lora import new_adapter
from worker.trunk.trunk import Trunk

__all__ = ["find_model", "minilm", "run_task"]

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

DPO = "worker.training.methods.dpo:Dpo"
SUPERVISED = "worker.training.methods.supervised:Supervised"
GIB = 1 << 30


def with_choice(spec: JobSpec, asked: Any) -> JobSpec:
    return replace(
        spec, hyperparameters=replace(spec.hyperparameters, gradient_checkpointing=asked)
    )


def weights_of(storage: LocalStorage, attempt: Attempt) -> dict[str, Tensor]:
    directory = storage.directory(f"{attempt.last['prefix']}/adapter")
    return load_file(directory / "adapter_model.safetensors")


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-6)


LORA = AdapterSpec.of_lora(LoraSpec(r=4, alpha=8, dropout=0.2))
DORA = AdapterSpec("lora", {"r": 4, "dropout": 0.2, "use_dora": True})
PREFIX = AdapterSpec("prefix-tuning", {"num_virtual_tokens": 3})


@pytest.mark.parametrize(
    ("implementation", "adapter"),
    [(SUPERVISED, LORA), (DPO, LORA), (DPO, DORA), (DPO, PREFIX)],
    ids=["supervised-lora", "dpo-lora", "dpo-dora", "dpo-prefix-tuning"],
)
def test_a_run_of_text_generation_learns_the_same(
    run_attempt: RunAttempt, storage: LocalStorage, implementation: str, adapter: AdapterSpec
) -> None:
    """Between both passes of DPO lies one of the model that it compares with, without dropout."""
    file = put_records(storage, "train", PREFERENCES if implementation == DPO else SHORT_CHATS)
    spec = with_options(replace(job_spec(file, num_epochs=2), adapter=adapter))
    kept, again = (
        run_attempt(with_choice(replace(spec, job_id=name), asked), implementation=implementation)
        for name, asked in (("kept", False), ("again", True))
    )

    assert again.of_type("prepared")[0]["memory_note"].startswith("gradient_checkpointing = True: ")
    losses = [[one["train_loss"] for one in run.of_type("step")] for run in (kept, again)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert_same(weights_of(storage, again), weights_of(storage, kept))


def gradients_of(trunk: Trunk, recomputed: RecomputedLayers | None) -> list[Tensor]:
    """Return those of a pass with dropout, after which another pass of the base model begins."""
    adapter = new_adapter(trunk.model, LoraSpec(r=2, alpha=4, dropout=0.5), seed=1)
    leaves = [one.requires_grad_() for pair in adapter.weights.values() for one in (pair.a, pair.b)]
    generator = torch.Generator().manual_seed(3)
    trunk.attach("tuned", adapter, generator)
    try:
        with torch.no_grad():
            for leaf in leaves:
                leaf.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(2))
        hidden = trunk.hidden(pack([SequenceRows([1, 2, 3], "tuned")], trunk.device))
        with torch.no_grad():
            trunk.hidden(pack([SequenceRows([4, 5, 6, 7])], trunk.device))
        hidden.square().sum().backward()  # type: ignore[no-untyped-call]
    finally:
        trunk.detach("tuned")
        if recomputed is not None:
            recomputed.end()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def test_what_is_not_remembered_of_a_pass_would_be_missed(tiny_trunk: Trunk) -> None:
    """The control: other routing and other dropout do not pass unnoticed."""
    expected = gradients_of(tiny_trunk, None)
    model = tiny_trunk.model
    found = gradients_of(tiny_trunk, RecomputedLayers(model, remember_pass(tiny_trunk)))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    try:
        forgetful = gradients_of(tiny_trunk, RecomputedLayers(model))
    except (RuntimeError, torch.utils.checkpoint.CheckpointError):
        return
    largest = max(
        float((one - other).abs().max()) for one, other in zip(forgetful, expected, strict=True)
    )
    assert largest > 1e-3


def test_a_run_of_a_task_learns_the_same(
    run_task: Any, storage: LocalStorage, minilm: Path
) -> None:
    records = [{"text": f"{word} work", "label": word} for word in ("good", "bad")] * 4
    found = []
    for asked in (False, True):
        spec = task_spec(storage, "text-classification", records, gradient_checkpointing=asked)
        attempt = run_task(replace(spec, job_id=f"ftjob-{asked}"), minilm)
        found.append(weights_of(storage, attempt))
    assert_same(found[1], found[0])


def test_fewer_activations_are_kept(tiny_trunk: Trunk) -> None:
    batch = pack([SequenceRows(list(range(1, 200)), "tuned")], tiny_trunk.device)
    adapter = new_adapter(tiny_trunk.model, LoraSpec(r=2, alpha=4), seed=1)
    for pair in adapter.weights.values():
        pair.a.requires_grad_()
        pair.b.requires_grad_()
    tiny_trunk.attach("tuned", adapter)

    def kept() -> int:
        return activation_bytes(tiny_trunk.model.parameters(), lambda: tiny_trunk.hidden(batch))

    try:
        whole = kept()
        recomputed = RecomputedLayers(tiny_trunk.model, remember_pass(tiny_trunk))
        less = kept()
        recomputed.end()
        assert less < whole / 4
        assert kept() == whole
    finally:
        tiny_trunk.detach("tuned")


@pytest.mark.slow
def test_the_peak_of_a_process_is_lower() -> None:
    """Measured as the operating system does, one process for each way."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.peak_of_a_step"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kept, again = (int(line) for line in done.stdout.split())
    assert again < kept / 2


@pytest.mark.parametrize(
    ("asked", "pass_bytes", "is_possible", "is_recomputed", "told"),
    [
        ("auto", 3 * GIB, True, False, "(auto: a pass keeps 3,072 MiB of activations, 8,192 MiB"),
        ("auto", 5 * GIB, True, True, "gradient_checkpointing = True (auto: "),
        ("auto", 5 * GIB, False, False, "cannot be computed again)"),
        (True, 1, True, True, "gradient_checkpointing = True: "),
        (False, 9 * GIB, True, False, "gradient_checkpointing = False: "),
    ],
)
def test_memory_decides_unless_the_user_does(
    asked: Any, pass_bytes: int, is_possible: bool, is_recomputed: bool, told: str
) -> None:
    choice = choose(asked, pass_bytes, 8 * GIB, is_possible=is_possible)
    assert choice.is_recomputed is is_recomputed
    assert told in choice.reason


def test_layers_that_cannot_be_computed_again_are_told_of() -> None:
    with pytest.raises(InvalidInput, match="cannot be computed again") as refused:
        RecomputedLayers(nn.Sequential(nn.Linear(2, 2)))
    assert refused.value.param == "tunesmith.training.gradient_checkpointing"
