"""Text generation before its first step: the trunk, the data as tokens, the session."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from app.domain.job_spec import DatasetRef
from app.domain.registry import resolve
from app.storage.port import Storage
from worker.training.bases import WarmBase, WarmBases
from worker.training.batches import split
from worker.training.commands import Train
from worker.training.dataset_content import open_dataset
from worker.training.earlier import remember, with_replayed
from worker.training.learner import Learner
from worker.training.manifest import Origin, chat_template
from worker.training.methods import Method
from worker.training.packed_learner import PackedLearner
from worker.training.records import EncodedDataset, encode_dataset
from worker.training.session import Session, starting_adapter
from worker.training.trained_weights import LoraWeights
from worker.trunk.loading import load_trunk
from worker.trunk.peft_format import load_adapter

if TYPE_CHECKING:
    from worker.training.prepare_tuned import TunedSession

# By name, since `peft` takes seconds to import, which plain LoRA does without.
_TUNED_SESSION = "worker.training.prepare_tuned:make_tuned_session"


def make_packed_learner(
    command: Train, bases: WarmBases, storage: Storage, token_budget: int, start: Path | None
) -> tuple[Learner, float]:
    """Return a learner before its first step, and the seconds that loading its base model took.

    Args:
        start: directory of the adapter that the run starts from; None: from the base model.

    Raises:
        TrainingFailed: a dataset has a record that cannot be trained on, or none that can.
        InvalidInput: the base model or the adapter to start from cannot be used.
    """
    spec = command.spec
    is_quantized = spec.hyperparameters.base_quantization is not None
    is_shared = spec.adapter.plain_lora() is not None and not is_quantized
    base, base_load_seconds = bases.get(command.base) if is_shared else _own(command, bases)
    trunk = base.trunk
    method: Method = resolve(command.implementation)(spec)
    dataset = partial(_dataset, command, storage, base, method)
    training = dataset("training_file", spec.training_file)
    heldout: tuple[EncodedDataset, Sequence[int]] | None = None
    records: Sequence[int] = range(training.num_records)
    if spec.validation_file is not None:
        validation = dataset("validation_file", spec.validation_file)
        heldout = validation, range(validation.num_records)
    elif spec.evaluation.holdout > 0:
        records, kept_out = split(training.num_records, spec.evaluation.holdout, spec.seed)
        heldout = (training, kept_out) if kept_out else None
    earlier = None
    replay = spec.hyperparameters.replay
    if replay is not None:
        dataset_of_before = dataset("tunesmith.training.replay.file", replay.file)
        earlier = remember(dataset_of_before, len(records), replay.share, spec.seed)
        records = [
            *records,
            *range(training.num_records, training.num_records + len(earlier.replayed)),
        ]
        training = with_replayed(training, earlier)
    keeps_start = spec.start_from is not None and (method.needs_reference or earlier is not None)
    noise_alpha = spec.hyperparameters.neftune_noise_alpha
    origin = Origin(spec, command.base, trunk.directory, bases.profile, chat_template(trunk))
    name = command.base.name_or_path
    if not is_shared:
        tuned: TunedSession = resolve(_TUNED_SESSION)(
            spec, method, trunk, training, records, start, name, keeps_start=keeps_start
        )
        learner = PackedLearner(
            tuned.trunk,
            tuned.session,
            tuned.weights,
            heldout,
            token_budget,
            origin.write,
            earlier=earlier,
            noise_alpha=noise_alpha,
            become_served=partial(_restore, tuned, command, bases) if is_quantized else None,
        )
        return learner, base_load_seconds
    before = load_adapter(start) if start is not None else None
    adapter = starting_adapter(trunk, spec, before)
    # Where the run starts from another adapter, that is what a method compares with.
    reference = before if keeps_start else None
    session = Session(
        spec,
        method,
        adapter,
        training,
        trunk.device,
        records=records,
        reference=f"{spec.job_id}#start" if reference is not None else None,
    )
    weights = LoraWeights(adapter, name)
    learner = PackedLearner(
        trunk,
        session,
        weights,
        heldout,
        token_budget,
        origin.write,
        reference=reference,
        earlier=earlier,
        noise_alpha=noise_alpha,
    )
    return learner, base_load_seconds


def _own(command: Train, bases: WarmBases) -> tuple[WarmBase, float]:
    """Return a base model that this run may change, and the seconds that loading it took."""
    bases.forget()
    started = time.perf_counter()
    base = WarmBase(load_trunk(Path(command.base.directory), bases.profile))
    return base, time.perf_counter() - started


def _restore(tuned: "TunedSession", command: Train, bases: WarmBases) -> None:
    """Put the base model below the adapter back to what it is served as."""
    assert tuned.quantized is not None
    tuned.quantized.restore(load_trunk(Path(command.base.directory), bases.profile).model)


def _dataset(
    command: Train,
    storage: Storage,
    base: WarmBase,
    method: Method,
    param: str,
    file: DatasetRef,
) -> EncodedDataset:
    max_length_tokens = command.spec.hyperparameters.max_length_tokens
    encode = partial(method.encode, base.trunk.tokenizer, max_length_tokens=max_length_tokens)
    with open_dataset(storage, file, param) as stream:
        return base.dataset(
            (file.sha256, command.implementation, max_length_tokens),
            lambda: encode_dataset(stream, encode, param),
        )
