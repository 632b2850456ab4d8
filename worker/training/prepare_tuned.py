"""Text generation by what plain LoRA is not: a trunk, a session and weights of their own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.domain.job_spec import JobSpec
from worker.training.batches import derived_seed
from worker.training.methods import Method
from worker.training.records import EncodedDataset
from worker.training.session import Session
from worker.training.trained_weights import TunedOptimizer, TunedWeights
from worker.trunk.trunk import Trunk
from worker.tuning.packed import tune_trunk
from worker.tuning.quantized import QuantizedLayers
from worker.tuning.tuned_trunk import TunedTrunk


@dataclass(frozen=True, slots=True)
class TunedSession:
    """What a `PackedLearner` is made of.

    Attributes:
        quantized: layers of the base model; None: they are as they were loaded.
    """

    trunk: TunedTrunk
    session: Session
    weights: TunedWeights
    quantized: QuantizedLayers | None


def make_tuned_session(
    spec: JobSpec,
    method: Method,
    trunk: Trunk,
    training: EncodedDataset,
    records: Sequence[int],
    start: Path | None,
    base_model_name: str,
    *,
    keeps_start: bool,
) -> TunedSession:
    """Return a session before its first step.

    Args:
        trunk: changed, and used by no one else.
        start: directory of what the run starts from; None: the base model.
        keeps_start: that model stays there to be compared with.

    Raises:
        InvalidInput: the adapter does not fit the model, or the one to start from does not.
    """
    chosen = spec.hyperparameters
    total_steps = math.ceil(len(records) / chosen.batch_size) * chosen.num_epochs
    tuned = tune_trunk(trunk, spec, total_steps, derived_seed(spec.seed, "adapter"), start)
    reference: str | None = None
    if keeps_start:
        # Where the run starts from another model, that is what a method compares with.
        reference = f"{spec.job_id}#start"
        tuned.trunk.keep_start(reference)
    session = Session(
        spec,
        method,
        None,
        training,
        trunk.device,
        records=records,
        optimizer=TunedOptimizer(tuned.tuning, chosen.weight_decay),
        reference=reference,
    )
    weights = TunedWeights(tuned.trunk, tuned.tuning, base_model_name)
    return TunedSession(tuned.trunk, session, weights, tuned.quantized)
