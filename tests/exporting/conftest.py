"""Fine-tuned models, trained in this process, and their exports."""

import hashlib
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from app.domain.exports import EXPORT_FORMATS, choose_quantization
from app.domain.job_spec import AdapterSpec, JobSpec
from app.storage.local import LocalStorage
from tests.tasks.conftest import find_model, minilm, run_task
from tests.training.conftest import (
    SHORT_CHATS,
    RunAttempt,
    base,
    bases,
    job_spec,
    put_records,
    run_attempt,
    tiny_base,
)
from worker.exporting.command import Command, Provenance
from worker.exporting.run import Made, run_export
from worker.training.manifest import BaseModelRef

__all__ = ["base", "bases", "find_model", "minilm", "run_attempt", "run_task", "tiny_base"]


@dataclass(frozen=True)
class Trained:
    """A fine-tuned model in storage."""

    base: BaseModelRef
    spec: JobSpec
    prefix: str


@dataclass(frozen=True)
class Exported:
    """What became of a fine-tuned model."""

    made: Made
    into: Path

    @property
    def verification(self) -> dict[str, Any]:
        return self.made.verification

    def file(self, ending: str) -> Path:
        (path,) = [Path(one) for one in self.made.files if one.endswith(ending)]
        return path

    def unpacked(self) -> Path:
        """Return the directory in the archive."""
        (path,) = self.made.files
        with tarfile.open(path) as tar:
            tar.extractall(self.into / "unpacked", filter="data")
        (directory,) = (self.into / "unpacked").iterdir()
        return directory


Train = Callable[..., Trained]
Export = Callable[..., Exported]


@pytest.fixture(scope="session")
def small_base(base_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> BaseModelRef:
    """Two random layers under a small tokenizer of the real one's kind: quick to load anywhere."""
    directory = tmp_path_factory.mktemp("small")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([repr(SHORT_CHATS)], trainer)
    template = (base_model_dir / "chat_template.jinja").read_text()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=template,
    ).save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=416,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,  # So that what is wrong is seen.
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return BaseModelRef("small", str(directory), "revision-1", "tests/small")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def train(run_attempt: RunAttempt, storage: LocalStorage, small_base: BaseModelRef) -> Train:
    """Train a kind of adapter on chats, with a rate at which it changes every answer."""

    def run(
        adapter: AdapterSpec | None = None, base: BaseModelRef = small_base, rate: float = 0.05
    ) -> Trained:
        training, heldout = (
            put_records(storage, name, SHORT_CHATS) for name in ("train", "heldout")
        )
        spec = job_spec(training, heldout, learning_rate=rate)
        if adapter is not None:
            spec = replace(spec, adapter=adapter)
        spec = replace(spec, base_model=base.id)
        ended = run_attempt(spec, base=base).last
        assert ended["type"] == "finished", ended
        return Trained(base, spec, f"{ended['prefix']}/adapter")

    return run


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Export a model in this process, as an export's own process does."""

    def run(
        trained: Trained,
        name: str,
        quantization: str | None = None,
        *,
        implementation: str | None = None,
    ) -> Exported:
        chosen = choose_quantization(name, quantization)
        into = tmp_path / f"{name}-{chosen}"
        into.mkdir()
        command = Command(
            implementation=implementation or EXPORT_FORMATS[name].implementation,
            format=name,
            quantization=chosen,
            limit=EXPORT_FORMATS[name].limits[chosen],
            name=f"model-{name}",
            base=trained.base,
            spec=trained.spec,
            storage_url=f"file://{tmp_path}/storage",
            storage_prefix=trained.prefix,
            provenance=Provenance("ft:small", "dir:/models/small", "r1", "apache-2.0", None),
            into=str(into),
        )
        return Exported(run_export(command), into)

    return run


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
