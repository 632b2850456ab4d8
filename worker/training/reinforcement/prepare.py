"""Learning from rewards before its first step: the trunk, the prompts, the grader, the session."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from app.domain.graders import parse_grader
from app.domain.job_spec import DatasetRef
from app.domain.registry import resolve
from app.storage.port import Storage
from worker.training.bases import WarmBases
from worker.training.batches import split
from worker.training.commands import Train
from worker.training.dataset_content import open_dataset
from worker.training.learner import Learner
from worker.training.manifest import Origin, chat_template
from worker.training.methods import Method
from worker.training.methods.reinforcement import RolloutOptions
from worker.training.reinforcement.learner import ReinforcementLearner
from worker.training.reinforcement.prompts import PromptDataset, encode_prompts
from worker.training.reinforcement.rollouts import Rollouts
from worker.training.reinforcement.session import ReinforcementSession
from worker.training.session import starting_adapter
from worker.training.trained_weights import LoraWeights
from worker.trunk.peft_format import load_adapter
from worker.trunk.trunk import Trunk


def make_reinforcement_learner(
    command: Train, bases: WarmBases, storage: Storage, token_budget: int, start: Path | None
) -> tuple[Learner, float]:
    """Return a learner before its first step, and the seconds that loading its base model took.

    Args:
        start: directory of the adapter that the run starts from; None: from the base model.

    Raises:
        TrainingFailed: a dataset has a record that cannot be answered, or none that can.
        InvalidInput: the base model or the adapter to start from cannot be used.
    """
    spec = command.spec
    base, base_load_seconds = bases.get(command.base)
    trunk = base.trunk
    method: Method = resolve(command.implementation)(spec)
    prompts = partial(_prompts, storage, trunk, method, spec.hyperparameters.max_length_tokens)
    training = prompts("training_file", spec.training_file)
    heldout: tuple[PromptDataset, Sequence[int]] | None = None
    records: Sequence[int] = range(training.tokens.num_records)
    if spec.validation_file is not None:
        validation = prompts("validation_file", spec.validation_file)
        heldout = validation, range(validation.tokens.num_records)
    elif spec.evaluation.holdout > 0:
        records, kept_out = split(len(records), spec.evaluation.holdout, spec.seed)
        heldout = (training, kept_out) if kept_out else None
    before = load_adapter(start) if start is not None else None
    adapter = starting_adapter(trunk, spec, before)
    # Where the run starts from another adapter, that is what its divergence is measured from.
    reference = before if method.needs_reference else None
    options = RolloutOptions.of(spec.method_options)
    rollouts = Rollouts(
        trunk,
        parse_grader(spec.method_options["grader"], "method.reinforcement.grader"),
        max_completion_tokens=options.max_completion_tokens,
        temperature=options.temperature,
        context_tokens=_context_tokens(trunk, spec.hyperparameters.max_length_tokens),
        seed=spec.seed,
    )
    session = ReinforcementSession(
        spec,
        method,
        adapter,
        training,
        rollouts,
        trunk.device,
        records=records,
        reference=f"{spec.job_id}#start" if reference is not None else None,
    )
    origin = Origin(spec, command.base, trunk.directory, bases.profile, chat_template(trunk))
    learner = ReinforcementLearner(
        trunk,
        session,
        LoraWeights(adapter, command.base.name_or_path),
        rollouts,
        heldout,
        options,
        spec.seed,
        token_budget,
        origin.write,
        reference,
    )
    return learner, base_load_seconds


def _prompts(
    storage: Storage,
    trunk: Trunk,
    method: Method,
    max_length_tokens: int,
    param: str,
    file: DatasetRef,
) -> PromptDataset:
    encode = partial(method.encode, trunk.tokenizer, max_length_tokens=max_length_tokens)
    with open_dataset(storage, file, param) as stream:
        return encode_prompts(stream, encode, param)


def _context_tokens(trunk: Trunk, at_least: int) -> int:
    """Return how many tokens the base model takes; a grading prompt may need more than a record."""
    return max(int(getattr(trunk.model.config, "max_position_embeddings", 0)), at_least)
