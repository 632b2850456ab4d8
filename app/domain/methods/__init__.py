"""Training methods: the registry from which request schemas, validation and trainers derive."""

from dataclasses import dataclass

from app.domain.methods.continued_pretraining import ContinuedPretrainingMethodSettings
from app.domain.methods.dpo import DpoMethodSettings
from app.domain.methods.reinforcement import ReinforcementMethodSettings
from app.domain.methods.settings import (
    Auto,
    Circumstances,
    Hyperparameters,
    MethodSettings,
    Resolution,
    resolve_hyperparameters,
)
from app.domain.methods.supervised import SupervisedHyperparameters, SupervisedMethodSettings
from app.domain.registry import Registry

__all__ = [
    "METHODS",
    "Auto",
    "Circumstances",
    "Hyperparameters",
    "MethodSettings",
    "Resolution",
    "SupervisedHyperparameters",
    "TrainingMethod",
    "resolve_hyperparameters",
]


@dataclass(frozen=True, slots=True)
class TrainingMethod:
    """One way to train. What it learns from is in `app.domain.tasks.TASKS`, by task.

    Attributes:
        summary: one sentence for the OpenAPI document.
        settings: the wire model of its settings, with the field `hyperparameters`.
        implementation: dotted path of the class that computes it for text generation, importable
            in the worker only; other tasks have their own classes.
        learner: dotted path of what makes a run of it out of a command, for text generation.
        main_metric: by which the best checkpoint is chosen unless another is named; None: by
            that of the task.
    """

    summary: str
    settings: type[MethodSettings]
    implementation: str
    learner: str = "worker.training.prepare_packed:make_packed_learner"
    main_metric: str | None = None

    @property
    def hyperparameters(self) -> type[Hyperparameters]:
        """The wire model of its hyperparameters."""
        model = self.settings.model_fields["hyperparameters"].annotation
        assert isinstance(model, type)
        assert issubclass(model, Hyperparameters)
        return model


METHODS: Registry[TrainingMethod] = Registry("training method")
METHODS.add(
    "supervised",
    TrainingMethod(
        summary="Learn the answers that the records give.",
        settings=SupervisedMethodSettings,
        implementation="worker.training.methods.supervised:Supervised",
    ),
)
METHODS.add(
    "continued_pretraining",
    TrainingMethod(
        summary="Learn raw text, without labels.",
        settings=ContinuedPretrainingMethodSettings,
        implementation="worker.training.methods.continued_pretraining:ContinuedPretraining",
    ),
)
METHODS.add(
    "dpo",
    TrainingMethod(
        summary="Learn which of two answers is preferred.",
        settings=DpoMethodSettings,
        implementation="worker.training.methods.dpo:Dpo",
    ),
)
METHODS.add(
    "reinforcement",
    TrainingMethod(
        summary="Learn from a grader's rewards for answers that the model samples itself.",
        settings=ReinforcementMethodSettings,
        implementation="worker.training.methods.reinforcement:Reinforcement",
        learner="worker.training.reinforcement.prepare:make_reinforcement_learner",
        main_metric="reward",
    ),
)
