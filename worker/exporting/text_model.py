"""Models of text generation: token by token, one sequence at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from app.domain.errors import DomainError, ExportFailed
from app.domain.job_spec import JobSpec
from app.domain.methods import METHODS
from app.domain.registry import resolve
from app.storage.port import Storage
from worker.exporting.model import InputsTold, frozen
from worker.exporting.samples import MAX_SAMPLES, read_samples
from worker.training.methods import Method
from worker.trunk.peft_format import CONFIG_NAME
from worker.tuning.loading import load_full, load_peft

# With 8 samples and a vocabulary of 50,000 the logits take 200 MB.
MAX_SAMPLE_TOKENS = 128

PROMPTS = (
    "The capital of France is Paris, and the capital of Italy is",
    "Once upon a time there was a small boat that nobody wanted to sail",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))",
    "1, 2, 3, 5, 8, 13, 21,",
)


class TextModel:
    """See `ExportedModel`.

    Args:
        chat_template: that the model was trained with.
    """

    def __init__(
        self,
        base: Path,
        adapter: Path,
        spec: JobSpec,
        storage: Storage,
        chat_template: str | None,
    ) -> None:
        self.base, self.adapter, self.spec = base, adapter, spec
        self.tokenizer: Any = AutoTokenizer.from_pretrained(
            base, local_files_only=True, trust_remote_code=False
        )
        if chat_template is not None:
            self.tokenizer.chat_template = chat_template
        origin, self.sequences = self._sequences(storage)
        self.inputs = InputsTold(origin, sum(map(len, self.sequences)))

    def untuned(self) -> PreTrainedModel:
        return self.load_plain(self.base)

    def load_plain(self, directory: Path, **options: Any) -> PreTrainedModel:
        """Return a model by plain `transformers`."""
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
        return frozen(model)

    def tuned(self) -> nn.Module:
        return self.load_adapter(self.adapter)

    def load_adapter(self, directory: Path) -> nn.Module:
        model = self.untuned()
        is_adapter = (directory / CONFIG_NAME).exists()
        tuned = load_peft(model, directory) if is_adapter else load_full(model, directory)
        return frozen(tuned)

    def merged(self) -> PreTrainedModel:
        return merge(self.load_adapter(self.adapter))

    def save_preparation(self, into: Path) -> None:
        self.tokenizer.save_pretrained(into)

    @torch.no_grad()
    def outputs(self, model: nn.Module) -> Iterator[Tensor]:
        for sequence in self.sequences:
            yield model(input_ids=torch.tensor([sequence])).logits[0].float()

    def _sequences(self, storage: Storage) -> tuple[Any, list[list[int]]]:
        method: Method = resolve(METHODS[self.spec.method].implementation)(self.spec)
        length = self.spec.hyperparameters.max_length_tokens
        for origin, records in read_samples(storage, self.spec):
            try:
                encoded = [
                    one.input_ids[:MAX_SAMPLE_TOKENS]
                    for record in records
                    for one in method.encode(self.tokenizer, record, length)
                ]
            except DomainError:
                continue
            if sequences := [one for one in encoded if one][:MAX_SAMPLES]:
                return origin, sequences
        return "fixed", [self.tokenizer(prompt).input_ids for prompt in PROMPTS]


def merge(tuned: nn.Module) -> PreTrainedModel:
    """Return a model that `load_adapter` gave, with what was tuned added to its weights.

    Raises:
        ExportFailed: it has a learnt prompt, or weights that are not finite.
    """
    if isinstance(tuned, PreTrainedModel):
        return tuned
    if not isinstance(tuned, peft.PeftModel):
        raise ExportFailed("a learnt prompt cannot be added to weights")
    anything: Any = tuned
    try:
        merged: PreTrainedModel = anything.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ExportFailed(f"the update cannot be merged: {error}") from error
    return frozen(merged)
