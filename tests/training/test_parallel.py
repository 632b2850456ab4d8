"""Two processes that share the steps of a run come to what one comes to, and end together."""

import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from app.domain.job_spec import AdapterSpec, DatasetRef, JobSpec, LoraSpec
from app.storage.local import LocalStorage
from tests.support.polling import eventually
from tests.training.conftest import (
    SHORT_CHATS,
    SUPERVISED,
    TOKENIZER_FILES,
    Attempt,
    Fields,
    RunAttempt,
    job_spec,
    put_records,
)
from tests.training.methods.conftest import FEEDBACK
from tests.training.test_checkpoints import files_below
from worker.trainer import Trainer, TrainerDied
from worker.training.manifest import BaseModelRef
from worker.trunk.listing import verify_listing

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")

START_SECONDS = 120
CLASSIFICATION = "worker.tasks.text_classification:TextClassification"
EMBEDDING = "worker.tasks.feature_extraction:FeatureExtraction"
DPO = "worker.training.methods.dpo:Dpo"
FAILING = "tests.training.failing_methods"

LABELLED = [
    {"text": message["messages"][0]["content"], "label": label}
    for message, label in zip(SHORT_CHATS, ["ask", "tell", "tell", "ask", "tell"], strict=True)
]


class Pair:
    """A trainer of two processes, as its supervisor has it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.trainer = Trainer(environment)
        self.messages: list[Fields] = []

    def until(self, *types: str) -> list[Fields]:
        """Return the messages up to the first of one of the types."""
        found: list[Fields] = []
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            message = self.trainer.receive(1.0)
            if message is not None:
                found.append(message)
                if message["type"] in types:
                    return found
        raise AssertionError(f"none of {types} came, but {found}: {self.trainer.log_tail}")

    def run(self, command: Fields) -> Attempt:
        self.trainer.send(command)
        return Attempt(messages=self.until("finished", "stopped", "failed"))

    def sibling(self) -> int:
        """Return the process id of the other one."""
        (child,) = children_of(self.trainer.pid)
        return child


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    return [
        int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()
    ]


def is_gone(pid: int) -> bool:
    try:
        # A dead process whose new parent has not looked at it yet is gone, too.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def start_pair() -> Pair:
    settings = {"TUNESMITH_THREADS": "1", "TUNESMITH_PROCESSES": "2", "TUNESMITH_DTYPE": "float32"}
    return Pair(os.environ | settings)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    pair = start_pair()
    pair.until("ready")
    yield pair
    pair.trainer.kill()


@pytest.fixture(scope="module")
def encoder(base_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> BaseModelRef:
    """Two random layers, without dropout: one process and two draw it differently."""
    directory = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=49152,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(directory)
    for name in TOKENIZER_FILES:
        (directory / name).write_bytes((base_model_dir / name).read_bytes())
    return BaseModelRef("encoder", str(directory), "revision-1", "tests/encoder")


@pytest.fixture
def command(tiny_base: BaseModelRef, tmp_path: Path) -> Callable[..., Fields]:
    """Return a `train` command."""
    deadline_file = tmp_path / "deadline"
    deadline_file.write_bytes(struct.pack("<d", time.monotonic() + 3600))

    def make(spec: JobSpec, lease: int, **overrides: Any) -> Fields:
        return {
            "op": "train",
            "epoch": lease,
            "spec": msgspec.to_builtins(spec),
            "implementation": SUPERVISED,
            "base": msgspec.to_builtins(tiny_base),
            "storage_url": f"file://{tmp_path}/storage",
            "checkpoint_prefix": f"jobs/{spec.job_id}/e{lease}",
            "resume_from": None,
            "deadline_file": str(deadline_file),
            "checkpoint_interval_seconds": 300,
        } | overrides

    return make


@pytest.fixture
def chats(storage: LocalStorage) -> DatasetRef:
    return put_records(storage, "chats", SHORT_CHATS)


def assert_alike(shared: Attempt, alone: Attempt, storage: LocalStorage) -> None:
    """Compare what two runs measured, and what they saved."""
    assert shared.last["type"] == alone.last["type"] == "finished", shared.last
    names = ("train_loss", "grad_norm", "trained_tokens")
    found, wanted = (
        [[step[name] for name in names] for step in attempt.of_type("step")]
        for attempt in (shared, alone)
    )
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), atol=1e-5, rtol=1e-5)
    assert [one["valid_loss"] for one in shared.of_type("validation")] == pytest.approx(
        [one["valid_loss"] for one in alone.of_type("validation")], abs=1e-5
    )
    of_shared, of_alone = (weights_of(attempt, storage) for attempt in (shared, alone))
    torch.testing.assert_close(of_shared, of_alone, atol=1e-5, rtol=0)


def weights_of(attempt: Attempt, storage: LocalStorage) -> dict[str, torch.Tensor]:
    directory = storage.directory(attempt.last["prefix"])
    return load_file(directory / "adapter" / "adapter_model.safetensors")


def test_text_generation_comes_to_the_same(
    pair: Pair, command: Any, run_attempt: RunAttempt, storage: LocalStorage, chats: DatasetRef
) -> None:
    # The last of an epoch's batches has one record, and so nothing for the second process.
    spec = job_spec(chats, chats, num_epochs=2, batch_size=4, weight_decay=0.01)

    shared = pair.run(command(spec, 1))

    assert_alike(shared, run_attempt(spec, lease=2), storage)


def test_a_method_that_surveys_the_batch_comes_to_the_same(
    pair: Pair, command: Any, run_attempt: RunAttempt, storage: LocalStorage
) -> None:
    spec = replace(
        job_spec(put_records(storage, "feedback", FEEDBACK), batch_size=4),
        method="dpo",
        method_options={"loss_type": "kto", "beta": 0.1},
    )

    shared = pair.run(command(spec, 1, implementation=DPO))

    alone = run_attempt(spec, lease=2, implementation=DPO)
    assert_alike(shared, alone, storage)
    assert [one["train_kl"] for one in shared.of_type("step")] == pytest.approx(
        [one["train_kl"] for one in alone.of_type("step")], abs=1e-5
    )


def test_a_task_comes_to_the_same(
    pair: Pair, command: Any, run_attempt: RunAttempt, storage: LocalStorage, encoder: BaseModelRef
) -> None:
    file = put_records(storage, "labelled", LABELLED)
    spec = replace(
        job_spec(file, file, num_epochs=2, batch_size=4),
        task="text-classification",
        adapter=AdapterSpec(options={"r": 4, "alpha": 8}),
    )
    base = msgspec.to_builtins(encoder)

    shared = pair.run(command(spec, 1, implementation=CLASSIFICATION, base=base))

    alone = run_attempt(spec, lease=2, base=encoder, implementation=CLASSIFICATION)
    assert_alike(shared, alone, storage)
    # That the second process really computes something is seen where it draws its own dropout.
    spec = replace(spec, adapter=AdapterSpec(options={"r": 4, "alpha": 8, "dropout": 0.5}))
    shared = pair.run(command(spec, 3, implementation=CLASSIFICATION, base=base))
    alone = run_attempt(spec, lease=4, base=encoder, implementation=CLASSIFICATION)
    with pytest.raises(AssertionError, match="not close"):
        assert_alike(shared, alone, storage)


def test_what_cannot_be_divided_is_left_to_one_process(
    pair: Pair, command: Any, run_attempt: RunAttempt, storage: LocalStorage, encoder: BaseModelRef
) -> None:
    records = [{"anchor": one["text"], "positive": one["label"]} for one in LABELLED]
    spec = replace(
        job_spec(put_records(storage, "pairs", records), batch_size=4),
        task="feature-extraction",
        adapter=AdapterSpec(options={"r": 4, "alpha": 8}),
    )
    base = msgspec.to_builtins(encoder)

    shared = pair.run(command(spec, 1, implementation=EMBEDDING, base=base))

    assert_alike(
        shared, run_attempt(spec, lease=2, base=encoder, implementation=EMBEDDING), storage
    )


def test_a_resumed_run_equals_an_uninterrupted_one(
    pair: Pair, command: Any, run_attempt: RunAttempt, storage: LocalStorage, chats: DatasetRef
) -> None:
    spec = job_spec(chats, adapter=LoraSpec(r=4, alpha=8, dropout=0.1), num_epochs=2)
    whole = pair.run(command(spec, 1, checkpoint_interval_seconds=0))
    second = whole.of_type("checkpoint")[1]["prefix"]

    resumed = pair.run(command(spec, 2, resume_from=second))

    assert resumed.of_type("prepared")[0]["start_step"] == 2
    assert files_below(storage.directory(resumed.last["prefix"])) == files_below(
        storage.directory(whole.last["prefix"])
    )
    # One process draws other dropout, and goes on all the same.
    alone = run_attempt(spec, lease=3, resume_from=second)
    assert alone.last["step"] == 6


def test_stops_and_failures_leave_both_ready_for_the_next_run(
    pair: Pair, command: Any, storage: LocalStorage, chats: DatasetRef
) -> None:
    endless = job_spec(chats, job_id="stopped", num_epochs=50, batch_size=1)
    pair.trainer.send(command(endless, 1))
    pair.until("step")
    pair.trainer.send({"op": "stop"})
    stopped = pair.until("stopped", "finished", "failed")[-1]
    assert stopped["type"] == "stopped"
    verify_listing(storage.directory(stopped["prefix"]))

    bad = job_spec(put_records(storage, "bad", [{"messages": []}]), job_id="bad")
    assert pair.run(command(bad, 1)).last["code"] == "invalid_training_file"
    diverging = job_spec(chats, job_id="diverging", learning_rate=1e30, num_epochs=3)
    assert pair.run(command(diverging, 1)).last["code"] == "non_finite_loss"
    for rank, implementation in enumerate(("FaultyInFirst", "FaultyInSecond")):
        faulty = command(job_spec(chats), 1, implementation=f"{FAILING}:{implementation}")
        assert pair.run(faulty).last["message"] == f"ZeroDivisionError: a defect of {rank}"

    spec = job_spec(chats, job_id="good")
    pair.trainer.send(command(spec, 1))
    pair.trainer.send({"op": "abandon"})
    assert pair.until("stopped", "finished", "failed")[-1]["type"] == "stopped"
    assert pair.run(command(spec, 2)).last["type"] == "finished"


@pytest.mark.slow
def test_a_process_does_not_outlive_a_killed_trainer() -> None:
    pair = start_pair()
    pair.until("ready")
    sibling = pair.sibling()

    os.kill(pair.trainer.pid, signal.SIGKILL)

    eventually(lambda: is_gone(sibling), what="the other process is gone", within_seconds=20)
    pair.trainer.kill()


def test_a_dead_process_ends_the_other(
    pair: Pair, command: Any, chats: DatasetRef, tmp_path: Path
) -> None:
    """The last one of this file: no other can use the pair after it."""
    sibling = pair.sibling()
    endless = job_spec(chats, job_id="endless", num_epochs=50, batch_size=1)
    pair.trainer.send(command(endless, 1, checkpoint_interval_seconds=0))
    pair.until("checkpoint")

    os.kill(sibling, signal.SIGKILL)

    with pytest.raises(TrainerDied, match="exit status 76"):
        pair.until("finished", "failed", "stopped")
    published = sorted((tmp_path / "storage" / "jobs" / endless.job_id / "e1").iterdir())
    assert published
    for checkpoint in published:
        verify_listing(checkpoint)
