"""A warm base model, a tiny one for what needs no real model, and runs of jobs in this process."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from app.domain.job_spec import AdapterSpec, DatasetRef, Hyperparameters, JobSpec, LoraSpec
from app.storage.local import LocalStorage
from worker.training.bases import WarmBases
from worker.training.commands import CommandQueue, Train
from worker.training.manifest import BaseModelRef
from worker.training.methods.supervised import Supervised
from worker.training.records import DatasetBuilder, EncodedDataset
from worker.training.run import run_job
from worker.training.session import Session
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.chat import EncodedRecord
from worker.trunk.device import DeviceProfile
from worker.trunk.lora import LoraAdapter, new_adapter
from worker.trunk.trunk import Trunk

SUPERVISED = "worker.training.methods.supervised:Supervised"
CPU = DeviceProfile("cpu", "float32", 1)
HELDOUT = Path("examples/support-desk/heldout.jsonl")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

SHORT_CHATS = [
    {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]}
    for ask, answer in [
        ("Is the red bike in stock?", "Got it: red bike.\nTicket: stock/normal"),
        ("My brakes squeal.", "Got it: squealing brakes.\nTicket: repair/normal"),
        ("Refund, please!", "Got it: you want a refund.\nTicket: returns/normal"),
        ("When do you open?", "Got it: opening hours.\nTicket: other/low"),
        ("The fork has a crack.", "Got it: cracked fork.\nTicket: repair/high"),
    ]
]

Fields = dict[str, Any]


@dataclass
class Attempt:
    """A run in this process: what it sent, and the commands that a message brings about."""

    answers: Mapping[tuple[str, int], str] = field(default_factory=dict)
    commands: CommandQueue = field(default_factory=CommandQueue)
    messages: list[Fields] = field(default_factory=list)

    def send(self, type: str, /, **fields: Any) -> None:
        self.messages.append({"type": type, **fields})
        if answer := self.answers.get((type, fields.get("step", -1))):
            self.commands.read(io.BytesIO(json.dumps({"op": answer}).encode()))

    def of_type(self, type: str) -> list[Fields]:
        return [message for message in self.messages if message["type"] == type]

    @property
    def last(self) -> Fields:
        return self.messages[-1]


RunAttempt = Callable[..., Attempt]


@pytest.fixture(scope="session")
def bases() -> WarmBases:
    torch.set_num_threads(1)
    return WarmBases(CPU, capacity=2)


@pytest.fixture(scope="session")
def base(base_model_dir: Path) -> BaseModelRef:
    return BaseModelRef("smollm2", str(base_model_dir), "revision-1", "HuggingFaceTB/SmolLM2")


@pytest.fixture(scope="session")
def trunk(bases: WarmBases, base: BaseModelRef) -> Trunk:
    return bases.get(base)[0].trunk


@pytest.fixture(scope="session")
def tiny_base(base_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> BaseModelRef:
    """Two random layers under the real tokenizer: for what does not depend on the model."""
    directory = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    for name in TOKENIZER_FILES:
        shutil.copyfile(base_model_dir / name, directory / name)
    return BaseModelRef("tiny", str(directory), "revision-1", "tests/tiny")


@pytest.fixture(scope="session")
def tiny_trunk(bases: WarmBases, tiny_base: BaseModelRef) -> Trunk:
    return bases.get(tiny_base)[0].trunk


@pytest.fixture
def run_attempt(
    bases: WarmBases, tiny_base: BaseModelRef, storage: LocalStorage, tmp_path: Path
) -> RunAttempt:
    """Run a job on the tiny model, or another, until it ends, and return what it sent."""

    def run(
        spec: JobSpec,
        *,
        base: BaseModelRef = tiny_base,
        lease: int = 1,
        resume_from: str | None = None,
        answers: Mapping[tuple[str, int], str] | None = None,
        implementation: str = SUPERVISED,
        checkpoint_interval_seconds: float = 300.0,
        attempt: Attempt | None = None,
        epoch_ends: Mapping[int, str] | None = None,
    ) -> Attempt:
        attempt = attempt or Attempt(answers or {})
        command = Train(
            epoch=lease,
            spec=spec,
            implementation=implementation,
            base=base,
            storage_url=f"file://{tmp_path}/storage",
            checkpoint_prefix=f"jobs/{spec.job_id}/e{lease}",
            resume_from=resume_from,
            deadline_file=None,
            checkpoint_interval_seconds=checkpoint_interval_seconds,
            epoch_ends=dict(epoch_ends or {}),
        )
        run_job(command, bases, attempt.commands, attempt.send, token_budget=1024)
        return attempt

    return run


def put_records(storage: LocalStorage, name: str, records: Sequence[Fields]) -> DatasetRef:
    """Store records as a dataset."""
    content = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    key = f"files/{name}"
    storage.put(key, [content])
    return DatasetRef(name, key, hashlib.sha256(content).hexdigest(), len(records))


def job_spec(
    training_file: DatasetRef,
    validation_file: DatasetRef | None = None,
    *,
    job_id: str = "ftjob-test",
    adapter: LoraSpec = LoraSpec(r=4, alpha=8),  # noqa: B008
    **hyperparameters: Any,
) -> JobSpec:
    """Return the spec of a small run."""
    chosen = {"num_epochs": 1, "batch_size": 2, "learning_rate": 1e-3, "max_length_tokens": 256}
    return JobSpec(
        job_id=job_id,
        base_model="test",
        method="supervised",
        training_file=training_file,
        validation_file=validation_file,
        start_from=None,
        seed=7,
        hyperparameters=Hyperparameters(**(chosen | hyperparameters)),
        adapter=AdapterSpec.of_lora(adapter),
    )


def random_adapter(trunk: Trunk, spec: LoraSpec, seed: int) -> LoraAdapter:
    """Return an adapter that changes what the model computes, as a fresh one does not."""
    adapter = new_adapter(trunk.model, spec, seed)
    generator = torch.Generator().manual_seed(seed)
    for pair in adapter.weights.values():
        pair.b.normal_(0, 0.02, generator=generator)
    return adapter


def random_sequences(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 40_000, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def logits_of(trunk: Trunk, *sequences: SequenceRows) -> list[Tensor]:
    """Compute sequences in one batch, and return each one's logits, [tokens, vocab]."""
    batch = pack(sequences)
    logits = trunk.logits(trunk.hidden(batch))
    return [logits[segment.start : segment.end] for segment in batch.segments]


def heldout_ids(trunk: Trunk, count: int) -> list[int]:
    """Return the first tokens of real chats."""
    texts = [
        message["content"]
        for line in HELDOUT.read_text().splitlines()[:8]
        for message in json.loads(line)["messages"]
    ]
    ids: list[int] = trunk.tokenizer("\n".join(texts)).input_ids[:count]
    return ids


def supervised_session(
    spec: JobSpec, adapter: LoraAdapter, dataset: EncodedDataset, trunk: Trunk
) -> Session:
    return Session(spec, Supervised(spec), adapter, dataset, trunk.device)


def dataset_of(*records: tuple[list[int], list[int]]) -> EncodedDataset:
    """Return a dataset of (token ids, loss weights)."""
    builder = DatasetBuilder()
    for line, (token_ids, weights) in enumerate(records, start=1):
        builder.add(line, [EncodedRecord(token_ids, weights, False)])
    return builder.build("training_file")
