"""Text generation by every kind of adapter but plain LoRA, which the shared trunk trains."""

from dataclasses import dataclass
from pathlib import Path

import torch

from app.domain.job_spec import JobSpec
from app.domain.peft_kinds import FULL
from worker.trunk.trunk import Trunk
from worker.tuning import Tuning
from worker.tuning.full_tuning import FullTuning
from worker.tuning.peft_config import Surroundings
from worker.tuning.peft_tuning import PeftTuning
from worker.tuning.prompts import PeftPrompt
from worker.tuning.quantized import QuantizedLayers
from worker.tuning.tuned_trunk import TunedTrunk

_TASK_TYPE = "CAUSAL_LM"


@dataclass(frozen=True, slots=True)
class TunedBase:
    """A base model of its own and what is trained of it.

    Attributes:
        quantized: layers of the base model; None: they are as they were loaded.
    """

    trunk: TunedTrunk
    tuning: Tuning
    quantized: QuantizedLayers | None


def tune_trunk(
    trunk: Trunk, spec: JobSpec, total_steps: int, seed: int, start: Path | None
) -> TunedBase:
    """Change a trunk that no one else uses.

    Args:
        seed: decides the first weights.
        start: directory of an adapter of the same kind to start from.

    Raises:
        InvalidInput: the adapter does not fit the model, or the one to start from does not.
    """
    torch.manual_seed(seed)
    frozen_layers = spec.hyperparameters.freeze_layers
    tuning: Tuning
    prompt: PeftPrompt | None = None
    quantized: QuantizedLayers | None = None
    if spec.hyperparameters.base_quantization is not None:
        quantized = QuantizedLayers(trunk.model, spec.hyperparameters.base_quantization)
    if spec.adapter.type == FULL:
        # The losses take the output layer as it is, and where input and output share one table
        # so does the input: one such table is then the base model's and the tuned one's.
        tuning = FullTuning(trunk.model, frozen_layers, frozen=(trunk.head_weight,))
    else:
        made = PeftTuning(
            spec.adapter, Surroundings(trunk.model, (), _TASK_TYPE, total_steps, frozen_layers)
        )
        prompt = PeftPrompt(made.peft) if made.is_prompt else None
        tuning = made
    if start is not None:
        tuning.load_adapter(start)
    return TunedBase(TunedTrunk(trunk, tuning, prompt), tuning, quantized)
