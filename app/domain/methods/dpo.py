"""The settings of `dpo` and of the losses that are variants of it."""

from typing import Annotated, Literal

from pydantic import Field

from app.domain.errors import InvalidInput
from app.domain.methods.settings import (
    Auto,
    Automatic,
    Circumstances,
    Hyperparameters,
    MethodSettings,
)

LossType = Literal["sigmoid", "ipo", "orpo", "kto", "simpo"]

Weight = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]

# The losses that each of these is part of; others would ignore it.
_LOSSES_WITH: dict[str, tuple[LossType, ...]] = {
    "label_smoothing": ("sigmoid", "simpo"),
    "gamma": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
}


class DpoHyperparameters(Hyperparameters):
    """Hyperparameters of learning from preferences; `auto` is resolved from the data."""

    beta: Annotated[
        Auto | Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)],
        Field(description="How closely the model is held to the one that training starts from."),
    ] = "auto"
    loss_type: Annotated[
        LossType,
        Field(
            description="`sigmoid` is DPO itself; `orpo` and `simpo` need no reference; `kto` "
            "learns from single answers too."
        ),
    ] = "sigmoid"
    label_smoothing: Annotated[
        Annotated[float, Field(ge=0, lt=0.5)] | None,
        Field(description="Share of pairs assumed to be the wrong way round; sigmoid and simpo."),
    ] = None
    gamma: Annotated[
        Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None,
        Field(description="Margin by which the preferred answer is to win; simpo, 0.5 if absent."),
    ] = None
    desirable_weight: Annotated[
        Weight | None, Field(description="Of wanted answers; kto, 1 if absent.")
    ] = None
    undesirable_weight: Annotated[
        Weight | None, Field(description="Of unwanted answers; kto, 1 if absent.")
    ] = None

    def automatic(self, record_count: int) -> dict[str, Automatic]:
        beta: Automatic = 0.1, "the usual strength, for preferences that are mostly right"
        if self.loss_type == "simpo":
            beta = 2.0, "simpo compares means over tokens, which differ by little"
        return super().automatic(record_count) | {
            "learning_rate_multiplier": (
                0.1,
                "a tenth of the base model's own rate: preferences are learnt in small steps",
            ),
            "beta": beta,
        }


class DpoMethodSettings(MethodSettings):
    """Settings of the method `dpo`."""

    hyperparameters: DpoHyperparameters = DpoHyperparameters()

    def check(self, circumstances: Circumstances, where: str) -> None:
        asked, where = self.hyperparameters, f"{where}.hyperparameters"
        for name, losses in _LOSSES_WITH.items():
            if getattr(asked, name) is not None and asked.loss_type not in losses:
                raise InvalidInput(
                    f"{name} is no part of the loss_type {asked.loss_type!r}; it is of "
                    f"{' and '.join(losses)}",
                    param=f"{where}.{name}",
                )
        if circumstances.training.get("label_smoothing"):
            raise InvalidInput(
                "label_smoothing of tokens is no part of learning from preferences; that of pairs "
                f"is {where}.label_smoothing",
                param="tunesmith.training.label_smoothing",
            )
        for field, kind in circumstances.record_kinds.items():
            if kind == "feedback" and asked.loss_type != "kto":
                raise InvalidInput(
                    f"the {field} says of single answers whether they are wanted, from which the "
                    f"loss_type {asked.loss_type!r} cannot learn: it compares two answers to the "
                    "same prompt; 'kto' can",
                    param=f"{where}.loss_type",
                )
