"""Useful tokens per processor second: one training step here against TRL's SFTTrainer.

Both train the same LoRA adapter of the same model on the same records, eight a step, in one
process at one thread; each of the peer's steps is followed by one of ours on the same records.
What is compared is processor time, so that a busy machine shifts both sides alike. Before that,
the gradients of one batch are compared number by number.
"""

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from app.domain.job_spec import AdapterSpec, DatasetRef, Hyperparameters, JobSpec, LoraSpec
from worker.training.batches import MicroBatch, RecordBatch
from worker.training.methods.supervised import Supervised
from worker.training.records import DatasetBuilder
from worker.training.session import Session
from worker.training.step import trunk_step
from worker.trunk.chat import EncodedRecord
from worker.trunk.device import DeviceProfile
from worker.trunk.loading import load_trunk
from worker.trunk.lora import new_adapter
from worker.trunk.peft_format import load_adapter
from worker.trunk.trunk import Trunk

BATCH_SIZE = 8
TOKEN_BUDGET = 4096
LEARNING_RATE = 1e-4
# The skew of chat data: most records are short, a few are long.
LENGTH_MU, LENGTH_SIGMA, LENGTH_MIN, LENGTH_MAX = 4.3, 0.8, 20, 400
PROMPT_SHARE = 0.4


@dataclass(frozen=True)
class Sample:
    """One record: its tokens, and how many of them are the prompt."""

    input_ids: list[int]
    prompt_tokens: int

    @property
    def labels(self) -> list[int]:
        return [-100] * self.prompt_tokens + self.input_ids[self.prompt_tokens :]


@dataclass
class Timings:
    """Processor seconds and useful tokens of each round."""

    peer_seconds: list[float] = field(default_factory=list)
    own_seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="safetensors directory")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--text", type=Path, default=Path("examples/support-desk/train.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    samples = make_samples(arguments.model, arguments.text, arguments.rounds * BATCH_SIZE)
    lengths = sorted(len(sample.input_ids) for sample in samples)
    padded = sum(
        BATCH_SIZE * max(len(s.input_ids) for s in samples[start : start + BATCH_SIZE])
        for start in range(0, len(samples), BATCH_SIZE)
    )
    print(
        f"{len(samples)} records, {sum(lengths)} tokens, median {statistics.median(lengths):.0f}"
        f", longest {lengths[-1]}; padding would make it {padded / sum(lengths):.2f} times as many"
    )
    trunk = load_trunk(arguments.model, DeviceProfile("cpu", "float32", 1))
    compare_gradients(arguments.model, trunk, samples[:BATCH_SIZE])
    print(f"\n{'peer':44} {'TRL':>7} {'ours':>7} {'ratio':>6}   (useful tokens per CPU second)")
    for name, checkpointing in (
        ("SFTTrainer, its defaults (checkpointing)", True),
        ("SFTTrainer, gradient_checkpointing=False", False),
    ):
        report(name, race(arguments.model, trunk, samples, checkpointing=checkpointing))


def make_samples(model: Path, text: Path, count: int) -> list[Sample]:
    """Cut real text into records whose lengths are skewed as those of chats are."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    messages = [m for line in text.read_text().splitlines() for m in json.loads(line)["messages"]]
    stream = tokenizer("\n".join(m["content"] for m in messages)).input_ids
    dice = random.Random(1)
    samples = []
    for _ in range(count):
        drawn = round(math.exp(dice.gauss(LENGTH_MU, LENGTH_SIGMA)))
        length = min(LENGTH_MAX, max(LENGTH_MIN, drawn))
        start = dice.randrange(len(stream) - length)
        samples.append(Sample(stream[start : start + length], round(PROMPT_SHARE * length)))
    return samples


def compare_gradients(model: Path, trunk: Trunk, batch: Sequence[Sample]) -> None:
    """Print how far our gradients are from those of the peer's own loss on a padded batch."""
    trainer = make_trainer(model, batch, checkpointing=False)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:  # It starts at zero, which would make the gradients of A zero too.
            with torch.no_grad():
                parameter.normal_(0, 0.02, generator=generator)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.model.train()
    trainer.compute_loss(trainer.model, inputs).backward()
    theirs = {
        name: parameter.grad
        for name, parameter in trainer.model.named_parameters()
        if parameter.grad is not None
    }
    with tempfile.TemporaryDirectory() as directory:
        trainer.model.save_pretrained(directory)
        session = make_session(trunk, batch, Path(directory))
    trunk_step(trunk, [session], TOKEN_BUDGET)
    trunk.detach(session.name)
    largest = difference = 0.0
    for path, pair in session.adapter.weights.items():
        for half, tensor in (("lora_A", pair.a), ("lora_B", pair.b)):
            theirs_here = theirs[f"base_model.model.{path}.{half}.default.weight"]
            largest = max(largest, theirs_here.abs().max().item())
            difference = max(difference, (tensor.grad - theirs_here).abs().max().item())
    print(f"gradients: largest difference {difference:.1e} at a largest value of {largest:.1e}")
    assert difference < 1e-4 * largest, "the gradients are not the same"


class Interleave(TrainerCallback):
    """Times each of the peer's steps, and after it one of ours on the same records."""

    def __init__(self, trunk: Trunk, session: Session, timings: Timings) -> None:
        self._trunk = trunk
        self._session = session
        self._timings = timings
        self._started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._started = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._timings.peer_seconds.append(time.process_time() - self._started)
        started = time.process_time()
        (found,) = trunk_step(self._trunk, [self._session], TOKEN_BUDGET)
        self._session.update(found)
        self._timings.own_seconds.append(time.process_time() - started)
        self._timings.tokens.append(found.num_tokens)


def race(model: Path, trunk: Trunk, samples: Sequence[Sample], *, checkpointing: bool) -> Timings:
    timings = Timings()
    session = make_session(trunk, samples, None)
    trainer = make_trainer(model, samples, checkpointing=checkpointing)
    trainer.add_callback(Interleave(trunk, session, timings))
    trainer.train()
    trunk.detach(session.name)
    return timings


def report(name: str, timings: Timings) -> None:
    # The first round pays for warming up on both sides.
    rounds = list(zip(timings.peer_seconds, timings.own_seconds, timings.tokens, strict=True))[1:]
    peer = statistics.median(tokens / seconds for seconds, _, tokens in rounds)
    own = statistics.median(tokens / seconds for _, seconds, tokens in rounds)
    ratios = sorted(theirs / ours for theirs, ours, _ in rounds)
    print(
        f"{name:44} {peer:7.1f} {own:7.1f} {statistics.median(ratios):5.2f}x"
        f"   (rounds: {ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def make_trainer(model: Path, samples: Sequence[Sample], *, checkpointing: bool) -> SFTTrainer:
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    shape = LoraSpec()
    config = LoraConfig(
        r=shape.r,
        lora_alpha=shape.alpha,
        target_modules=list(shape.target_modules),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=min(BATCH_SIZE, len(samples)),
        num_train_epochs=1,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        gradient_checkpointing=checkpointing,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        bf16=False,  # Its default; fifty times slower on a CPU without bfloat16 units.
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    return SFTTrainer(
        model=get_peft_model(base, config),
        args=arguments,
        train_dataset=Dataset.from_list(
            [{"input_ids": s.input_ids, "labels": s.labels} for s in samples]
        ),
        processing_class=AutoTokenizer.from_pretrained(model),
    )


def make_session(trunk: Trunk, samples: Sequence[Sample], adapter: Path | None) -> Session:
    """Return a session over the samples in their own order."""
    builder = DatasetBuilder()
    for line, sample in enumerate(samples, start=1):
        weights = [int(label != -100) for label in sample.labels]
        builder.add(line, [EncodedRecord(sample.input_ids, weights, False)])
    dataset = builder.build("training_file")
    spec = JobSpec(
        job_id="bench",
        base_model="bench",
        method="supervised",
        training_file=DatasetRef("", "", "", len(samples)),
        validation_file=None,
        start_from=None,
        seed=0,
        hyperparameters=Hyperparameters(
            num_epochs=1,
            batch_size=min(BATCH_SIZE, len(samples)),
            learning_rate=LEARNING_RATE,
            max_length_tokens=LENGTH_MAX,
            scheduler="constant",
            warmup_ratio=0.0,
        ),
        adapter=AdapterSpec.of_lora(LoraSpec()),
    )
    weights_of = load_adapter(adapter) if adapter else new_adapter(trunk.model, LoraSpec(), 0)
    session = InOrder(spec, Supervised(spec), weights_of, dataset, trunk.device)
    trunk.attach(session.name, session.adapter)
    return session


class InOrder(Session):
    """A session that takes its records in the order of the file, as the peer does here."""

    def next_batch(self, token_budget: int) -> list[MicroBatch]:
        start = self.step * BATCH_SIZE
        records = range(start, min(start + BATCH_SIZE, self.dataset.num_records))
        return list(RecordBatch(self.dataset, records, token_budget))


if __name__ == "__main__":
    main()
