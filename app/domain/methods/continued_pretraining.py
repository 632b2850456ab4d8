"""The settings of `continued_pretraining`."""

from app.domain.methods.settings import Hyperparameters, MethodSettings


class ContinuedPretrainingHyperparameters(Hyperparameters):
    """Hyperparameters of continued pre-training; `auto` is resolved from the data."""


class ContinuedPretrainingMethodSettings(MethodSettings):
    """Settings of the method `continued_pretraining`."""

    hyperparameters: ContinuedPretrainingHyperparameters = ContinuedPretrainingHyperparameters()
