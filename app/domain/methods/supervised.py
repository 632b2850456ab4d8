"""The settings of `supervised`."""

from app.domain.methods.settings import Hyperparameters, MethodSettings


class SupervisedHyperparameters(Hyperparameters):
    """Hyperparameters of supervised fine-tuning; `auto` is resolved from the data."""


class SupervisedMethodSettings(MethodSettings):
    """Settings of the method `supervised`."""

    hyperparameters: SupervisedHyperparameters = SupervisedHyperparameters()
