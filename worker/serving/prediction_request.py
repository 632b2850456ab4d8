"""A request for predictions under way: what it asks, its inputs, and what it has got so far."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from app.domain.errors import DomainError, InvalidInput
from app.inference import Caller
from worker.serving.callers import ANONYMOUS
from worker.tasks import Example, Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class TaskModel:
    """A task on its model, in service.

    Attributes:
        module: what computes: the task's own model and what was tuned of it.
        base_weights: the parameters of the task's model by their names in the base model.
    """

    task: Task
    module: nn.Module
    base_weights: Mapping[str, nn.Parameter]


@dataclass(frozen=True, slots=True)
class Asked:
    """What one request wants to know.

    Attributes:
        answer: turns an example and what is predicted for it into what the caller gets; may
            raise InvalidInput.
        name_of: the field of the request that holds an input, by its number.
        alone: computes, with gradients, what is told of an input, from it and its example, in a
            pass of its own; None is what the task predicts.
        caller: for whom.
    """

    model: TaskModel
    inputs: Sequence[Any]
    answer: Callable[[Example, Any], Any]
    name_of: Callable[[int], str]
    alone: Callable[[Any, Example], Any] | None = None
    caller: Caller = ANONYMOUS


@dataclass(frozen=True, slots=True)
class Predicted:
    """The answers to one request.

    Attributes:
        tokens: what its inputs took of the passes.
        truncated: numbers of the inputs that were longer than the model takes, and were cut.
    """

    answers: Sequence[Any]
    tokens: int
    truncated: Sequence[int]


@dataclass(slots=True, eq=False)
class Pending:
    """A request under way; all but `done` belongs to the loop's thread."""

    asked: Asked
    done: "Future[Predicted]" = field(default_factory=Future)
    answers: dict[int, Any] = field(default_factory=dict)
    tokens: int = 0
    truncated: list[int] = field(default_factory=list)

    def encode(self, one: "PendingInput") -> Example | None:
        """Return an input as an example; one that is refused fails the request."""
        try:
            one.example = self.asked.model.task.encode_input(one.value)
        except InvalidInput as error:
            self.fail(self._named(one, error))
        except Exception as error:
            self.fail(error)
        return one.example

    def settle(self, one: "PendingInput", prediction: Any) -> None:
        """Take over what was predicted for an input; the last one completes the request."""
        if self.done.done():
            return
        example = one.encoded
        try:
            answer = self.asked.answer(example, prediction)
        except InvalidInput as error:
            self.fail(self._named(one, error))
            return
        except Exception as error:
            self.fail(error)
            return
        if not _is_finite(answer):
            self.fail(_failure("the model's prediction is not finite"))
            return
        self.answers[one.number] = answer
        self.tokens += example.cost
        if example.is_truncated:
            self.truncated.append(one.number)
        if len(self.answers) == len(self.asked.inputs):
            self._complete()

    def fail(self, error: Exception) -> None:
        """End the request with an error, unless it has ended."""
        if self.done.done() or not self.done.set_running_or_notify_cancel():
            return
        if not isinstance(error, DomainError):
            logger.error("a prediction failed", exc_info=error)
            error = _failure("the model failed on these inputs")
        self.done.set_exception(error)

    def _complete(self) -> None:
        if self.done.set_running_or_notify_cancel():
            answers = [self.answers[number] for number in range(len(self.answers))]
            self.done.set_result(Predicted(answers, self.tokens, sorted(self.truncated)))

    def _named(self, one: "PendingInput", error: InvalidInput) -> InvalidInput:
        """Return the refusal of an input with the name of its field in this request."""
        head, dot, rest = (error.param or "inputs").partition(".")
        if head != "inputs":
            return error
        param = self.asked.name_of(one.number) + dot + rest
        return InvalidInput(f"'{param}': {error.message}", param=param, code=error.code)


@dataclass(slots=True, eq=False)
class PendingInput:
    request: Pending
    number: int
    value: Any
    example: Example | None = None

    @property
    def encoded(self) -> Example:
        assert self.example is not None
        return self.example


def _is_finite(answer: Any) -> bool:
    if isinstance(answer, float):
        return math.isfinite(answer)
    if isinstance(answer, dict):
        return all(map(_is_finite, answer.values()))
    return not isinstance(answer, list | tuple) or all(map(_is_finite, answer))


def _failure(message: str) -> DomainError:
    return DomainError(message, code="prediction_failed")
