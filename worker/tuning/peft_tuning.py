"""An adapter that `peft` puts into a model of any kind."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import peft
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from app.domain.errors import InvalidInput
from app.domain.job_spec import AdapterSpec
from app.domain.peft_kinds import PEFT_KINDS
from worker.trunk.peft_format import CONFIG_NAME, WEIGHTS_NAME
from worker.tuning import WEIGHTS, WeightGroup, named_weights
from worker.tuning.extras import extra_of
from worker.tuning.peft_config import Surroundings, peft_config
from worker.tuning.prompted import PromptedModel

EXTRA = "extra"
_HEAD = ".modules_to_save."
_PROMPT = "prompt_embeddings"


class PeftTuning:
    """See `Tuning`.

    Args:
        adapter: which kind, and its options.
        around: the model to change in place, and what its configuration depends on.
    """

    def __init__(self, adapter: AdapterSpec, around: Surroundings) -> None:
        self._config = peft_config(adapter, around)
        self._plus_ratio: float | None = adapter.complete_options().get("lora_plus_ratio")
        # What is trained whole learns as it does beside LoRA, whatever rate the kind needs.
        self._rate_factor = PEFT_KINDS[adapter.type].learning_rate_factor
        anything: Any = around.model
        try:
            # Adapters are trained in float32 whatever the format of the base model.
            self.peft = peft.get_peft_model(anything, self._config, autocast_adapter_dtype=True)
        except ValueError as error:
            raise InvalidInput(
                f"the adapter does not fit the base model: {error}", param="tunesmith.adapter"
            ) from error
        self._prompted = PromptedModel(self.peft) if self._config.is_prompt_learning else None
        self.model: nn.Module = self._prompted or self.peft
        self._extra = extra_of(adapter, self.peft, around.total_steps)

    @property
    def is_prompt(self) -> bool:
        return self._prompted is not None

    def groups(self) -> Sequence[WeightGroup]:
        trained = [
            (name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad
        ]
        heads = [one for one in trained if _HEAD in one[0]]
        others = [one for one in trained if _HEAD not in one[0]]
        groups = [WeightGroup(heads, 1 / self._rate_factor)] if heads else []
        if self._plus_ratio is None:
            return [*groups, WeightGroup(others)]
        return [
            *groups,
            WeightGroup([one for one in others if "lora_B" not in one[0]]),
            WeightGroup([one for one in others if "lora_B" in one[0]], self._plus_ratio),
        ]

    @contextmanager
    def as_base(self) -> Iterator[None]:
        if self._prompted is None:
            with self.peft.disable_adapter():
                yield
            return
        self._prompted.switch(is_off=True)
        try:
            yield
        finally:
            self._prompted.switch(is_off=False)

    def before_update(self, step: int) -> Tensor | None:
        return self._extra.before_update(step)

    def after_update(self, step: int) -> None:
        self._extra.after_update(step)

    def save(self, directory: Path, base_model_name: str) -> None:
        # With a state of its own choice `peft` does not take ranks that are gone for damage.
        tensors = peft.get_peft_model_state_dict(
            self.peft, state_dict=self.peft.state_dict(), save_embedding_layers=False
        )
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(on_cpu, directory / WEIGHTS_NAME, metadata={"format": "pt"})
        config = self._config
        was_training, config.inference_mode = config.inference_mode, True
        config.base_model_name_or_path = base_model_name
        config.save_pretrained(str(directory))
        config.inference_mode = was_training

    def load_adapter(self, directory: Path) -> None:
        try:
            config = msgspec.json.decode(
                (directory / CONFIG_NAME).read_bytes(), type=dict[str, Any]
            )
            if config.get("peft_type") != self._config.peft_type:
                raise InvalidInput("the model to start from has an adapter of another kind")
            tensors = self._extra.fit(load_file(directory / WEIGHTS_NAME), config)
            found: Any = peft.set_peft_model_state_dict(self.peft, tensors)
        except (
            OSError,
            SafetensorError,
            RuntimeError,
            KeyError,
            AttributeError,
            msgspec.DecodeError,
        ) as error:
            raise InvalidInput("the model to start from does not fit its base model") from error
        # `peft` has put a prompt where it belongs and yet knows no module of that name.
        unknown = [key for key in found.unexpected_keys if not (self.is_prompt and key == _PROMPT)]
        if unknown:
            raise InvalidInput(f"the model to start from holds {unknown[0]}")
        self._extra.weights_replaced()

    def state_tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        weights = {name: weight.detach() for name, weight in named_weights(self.groups())}
        return {WEIGHTS: weights, EXTRA: self._extra.state_tensors()}

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, weight in named_weights(self.groups()):
            weight.copy_(tensors[WEIGHTS][name])
        self._extra.weights_replaced()
        self._extra.load_state_tensors(tensors[EXTRA])
