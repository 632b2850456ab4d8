"""An input of text-to-text generation, with the options of its answer."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from app.domain.errors import InvalidInput
from worker.tasks.requests import checked, text_of

MAX_NEW_TOKENS = 512


class GenerationInput(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An input with how it is to be answered.

    Attributes:
        text: the source.
        max_new_tokens: the answer's length at most.
        num_beams: how many answers are followed up at a time; None: as many as the base model's
            `generation_config.json` says.
        do_sample: draw tokens by their probabilities instead of taking the likeliest.
        temperature: below 1 the likely ones are drawn more often than they should be.
        top_p: only the likeliest tokens, which have this probability together, are drawn.
        seed: decides what is drawn.
    """

    text: str
    max_new_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_NEW_TOKENS)] = 128
    num_beams: Annotated[int, msgspec.Meta(ge=1, le=8)] | None = None
    do_sample: bool = False
    temperature: Annotated[float, msgspec.Meta(gt=0, le=2)] = 1.0
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    seed: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)] = 0


def generation_input(value: Any) -> GenerationInput:
    """Return the input that a request asks about. Raises: InvalidInput."""
    if isinstance(value, str):
        return GenerationInput(text_of(value))
    if not isinstance(value, Mapping):
        raise InvalidInput("expected a text, or an object with 'text'", param="inputs")
    chosen = checked(GenerationInput, value, "inputs")
    text_of(chosen.text, field="inputs.text")
    if not chosen.do_sample and (chosen.temperature, chosen.top_p, chosen.seed) != (1.0, 1.0, 0):
        raise InvalidInput(
            "'temperature', 'top_p' and 'seed' need 'do_sample' to be true", param="inputs"
        )
    return chosen


def as_row(chosen: GenerationInput) -> list[float]:
    """Return the options as numbers, as a batch holds them."""
    return [float(value or 0) for value in msgspec.structs.astuple(chosen)[1:]]


def from_row(row: Sequence[float]) -> GenerationInput:
    """Return the options from such numbers."""
    most, beams, is_sampled, temperature, top_p, seed = row
    return GenerationInput(
        "", int(most), int(beams) or None, bool(is_sampled), temperature, top_p, int(seed)
    )
