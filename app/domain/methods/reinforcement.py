"""The settings of `reinforcement`."""

from math import ceil
from typing import Annotated, Literal

from pydantic import Field

from app.domain.errors import InvalidInput
from app.domain.graders import GraderModel, prepare_grader
from app.domain.methods.settings import (
    Auto,
    Automatic,
    Circumstances,
    Hyperparameters,
    MethodPart,
    MethodSettings,
)

PolicyLossType = Literal["grpo", "bnpo", "dr_grpo", "dapo"]
RewardScale = Literal["group", "batch", "none"]

MAX_GROUP_SIZE = 64

# What needs no answer of its own to learn from, and would be ignored.
_FOREIGN_TRAINING = ("label_smoothing", "replay", "neftune_noise_alpha")


class ReinforcementHyperparameters(Hyperparameters):
    """Hyperparameters of learning from rewards; `auto` is resolved from the data."""

    compute_multiplier: Annotated[
        Auto | Annotated[float, Field(gt=0.00001, le=10)],
        Field(description="Multiplies how many answers are sampled to each prompt."),
    ] = "auto"
    eval_interval: Annotated[
        Auto | Annotated[int, Field(ge=1)],
        Field(description="Steps between validations; the end of an epoch always has one."),
    ] = "auto"
    eval_samples: Annotated[
        Auto | Annotated[int, Field(ge=1, le=64)],
        Field(
            description="Answers to each held-out prompt in a validation: one is the likeliest, "
            "more are sampled."
        ),
    ] = "auto"
    reasoning_effort: Annotated[
        Literal["default"], Field(description="The models here have no levels of effort.")
    ] = "default"
    group_size: Annotated[
        Annotated[int, Field(ge=2, le=MAX_GROUP_SIZE)],
        Field(description="Answers sampled to each prompt, of which each is compared with all."),
    ] = 8
    max_completion_tokens: Annotated[
        Annotated[int, Field(ge=1)], Field(description="Longer answers are cut.")
    ] = 128
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    beta: Annotated[
        float,
        Field(
            ge=0,
            le=10,
            description="Weight of the divergence from the model that training starts from.",
        ),
    ] = 0.04
    loss_type: Annotated[
        PolicyLossType, Field(description="How much each token of an answer weighs.")
    ] = "dapo"
    scale_rewards: Annotated[
        RewardScale, Field(description="By whose spread the rewards of a group are divided.")
    ] = "group"

    def automatic(self, record_count: int) -> dict[str, Automatic]:
        found = super().automatic(record_count)
        epochs = min(10, ceil(200 / record_count))
        batch_size = found["batch_size"][0] if self.batch_size == "auto" else self.batch_size
        return found | {
            "n_epochs": (
                epochs,
                f"{record_count} records: at least 200 groups of answers are to be seen, in 1 to "
                "10 passes",
            ),
            "compute_multiplier": (1.0, "1 keeps the group size"),
            "eval_interval": (ceil(record_count / batch_size), "the steps of an epoch"),
            "eval_samples": (1, "the likeliest answer alone, which no chance has a part in"),
        }


class AnswerFormat(MethodPart):
    """Plain text, the only form that answers have here."""

    type: Literal["text"]


class ReinforcementMethodSettings(MethodSettings):
    """Settings of the method `reinforcement`."""

    grader: GraderModel
    hyperparameters: ReinforcementHyperparameters = ReinforcementHyperparameters()
    response_format: AnswerFormat | None = None

    def check(self, circumstances: Circumstances, where: str) -> None:
        grader = prepare_grader(self.grader, f"{where}.grader")
        for param, name in grader.models.items():
            if name != circumstances.base_model:
                raise InvalidInput(
                    f"a grading model answers where the job trains, which holds the job's own "
                    f"base model alone: expected {circumstances.base_model!r}, found {name!r}",
                    param=param,
                )
        if circumstances.adapter.plain_lora() is None:
            raise InvalidInput(
                "answers are sampled with plain LoRA adapters only: leave out what makes this one "
                "another",
                param="tunesmith.adapter",
            )
        longest = self.hyperparameters.max_completion_tokens
        if longest >= circumstances.max_length_tokens:
            param = f"{where}.hyperparameters.max_completion_tokens"
            raise InvalidInput(
                f"{param}: {longest} leaves no room for a prompt in the "
                f"{circumstances.max_length_tokens} tokens of max_length_tokens",
                param=param,
            )
        for name in _FOREIGN_TRAINING:
            if circumstances.training.get(name):
                raise InvalidInput(
                    f"{name} is no part of learning from rewards",
                    param=f"tunesmith.training.{name}",
                )
