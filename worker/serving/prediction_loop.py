"""The prediction loop: inputs that wait for one model are computed together, models take turns.

One thread owns every model of a task beside text generation. Each pass is one batch of one model,
as many of its waiting inputs, in the order in which they came, as stay within a budget.
"""

import logging
import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from app.domain.errors import DomainError, EngineUnavailable, InvalidInput, TooManyRequests
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
    """

    model: TaskModel
    inputs: Sequence[Any]
    answer: Callable[[Example, Any], Any]
    name_of: Callable[[int], str]
    alone: Callable[[Any, Example], Any] | None = None


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


@dataclass(frozen=True, slots=True)
class PredictionStats:
    """What the loop is doing, and has done since it began; all but `passes` counts inputs."""

    waiting: int
    passes: int
    predicted: int
    dropped: int


class PredictionLoop:
    """Predicts with every loaded model, on a thread of its own.

    Args:
        budget: what the inputs of one pass may cost together, once padded to the longest.
        max_queued: inputs that may wait.
    """

    def __init__(self, budget: int, max_queued: int) -> None:
        self.budget = budget
        self._max_queued = max_queued
        # Guards what several threads use, and wakes the loop's own when there is work.
        self._changed = threading.Condition()
        self._waiting: OrderedDict[TaskModel, deque[_Input]] = OrderedDict()
        self._present: TaskModel | None = None
        self._is_closing = False
        self._passes = self._predicted = self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="prediction", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, asked: Asked) -> "Future[Predicted]":
        """Queue the inputs of a request; cancelling the future drops those that still wait.

        Raises:
            TooManyRequests: too many inputs are waiting.
            EngineUnavailable: the loop has ended.
        """
        request = _Request(asked)
        with self._changed:
            if self._is_closing or not self.is_alive:
                raise EngineUnavailable()
            self._drop_ended()
            waiting = self._num_waiting()
            # In an empty queue there is room for any request, however long.
            if waiting and waiting + len(asked.inputs) > self._max_queued:
                raise TooManyRequests(
                    "the engine has as many inputs waiting as it accepts; try again"
                )
            queue = self._waiting.setdefault(asked.model, deque())
            queue.extend(_Input(request, i, value) for i, value in enumerate(asked.inputs))
            self._changed.notify()
        return request.done

    def is_idle(self, model: TaskModel) -> bool:
        """Return whether no input of a model is computed or waits."""
        with self._changed:
            return model is not self._present and model not in self._waiting

    def stats(self) -> PredictionStats:
        with self._changed:
            return PredictionStats(
                self._num_waiting(), self._passes, self._predicted, self._dropped
            )

    def close(self) -> None:
        """End after the pass in progress; what still waits fails as `EngineUnavailable`."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while (model := self._next_model()) is not None:
                    inputs = self._gather(model)
                    if inputs:
                        self._compute(model, inputs)
        finally:
            self._end()

    def _next_model(self) -> TaskModel | None:
        """Wait for work and return whose turn it is; None is the end."""
        with self._changed:
            self._present = None
            self._changed.wait_for(lambda: self._is_closing or self._waiting)
            if self._is_closing:
                return None
            self._present = next(iter(self._waiting))
            self._waiting.move_to_end(self._present)
            return self._present

    def _gather(self, model: TaskModel) -> "list[_Input]":
        """Return the inputs of the next pass, encoded; those that cannot be fail their request."""
        together: list[_Input] = []
        longest = 0
        while (one := self._take(model)) is not None:
            example = one.example or one.request.encode(one)
            if example is None:
                continue
            longest = max(longest, example.cost)
            is_alone = one.request.asked.alone is not None
            if together and (is_alone or longest * (len(together) + 1) > self.budget):
                self._put_back(model, one)
                break
            together.append(one)
            if is_alone:
                break
        return together

    def _compute(self, model: TaskModel, inputs: "Sequence[_Input]") -> None:
        try:
            predictions = _computed(model, inputs)
        except Exception as error:
            # Whose input it was is found by asking for each request by itself.
            by_request: dict[_Request, list[_Input]] = {}
            for one in inputs:
                by_request.setdefault(one.request, []).append(one)
            if len(by_request) == 1:
                inputs[0].request.fail(error)
                return
            for part in by_request.values():
                self._compute(model, part)
            return
        with self._changed:
            self._passes += 1
            self._predicted += len(inputs)
        for one, prediction in zip(inputs, predictions, strict=True):
            one.request.settle(one, prediction)

    def _take(self, model: TaskModel) -> "_Input | None":
        with self._changed:
            queue = self._waiting.get(model, deque())
            while queue:
                one = queue.popleft()
                if not one.request.done.done():
                    return one
                self._dropped += 1
            self._waiting.pop(model, None)
            return None

    def _put_back(self, model: TaskModel, one: "_Input") -> None:
        with self._changed:
            self._waiting.setdefault(model, deque()).appendleft(one)

    def _drop_ended(self) -> None:
        for model, queue in list(self._waiting.items()):
            wanted = deque(one for one in queue if not one.request.done.done())
            self._dropped += len(queue) - len(wanted)
            self._waiting[model] = wanted

    def _num_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _end(self) -> None:
        """Fail what is left, so that no one waits for a thread that has ended."""
        with self._changed:
            self._is_closing = True
            left = {one.request for queue in self._waiting.values() for one in queue}
            self._waiting.clear()
        for request in left:
            request.fail(EngineUnavailable())


def _computed(model: TaskModel, inputs: "Sequence[_Input]") -> list[Any]:
    first = inputs[0]
    if first.request.asked.alone is None:
        return _predict(model, [one.encoded for one in inputs])
    with torch.inference_mode(False), torch.enable_grad():
        return [first.request.asked.alone(first.value, first.encoded)]


def _predict(model: TaskModel, examples: Sequence[Example]) -> list[Any]:
    device = next(model.module.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in model.task.collate(examples).items()}
    return model.task.predict(model.module, batch)


@dataclass(slots=True, eq=False)
class _Request:
    """A request under way; all but `done` belongs to the loop's thread."""

    asked: Asked
    done: "Future[Predicted]" = field(default_factory=Future)
    answers: dict[int, Any] = field(default_factory=dict)
    tokens: int = 0
    truncated: list[int] = field(default_factory=list)

    def encode(self, one: "_Input") -> Example | None:
        """Return an input as an example; one that is refused fails the request."""
        try:
            one.example = self.asked.model.task.encode_input(one.value)
        except InvalidInput as error:
            self.fail(self._named(one, error))
        except Exception as error:
            self.fail(error)
        return one.example

    def settle(self, one: "_Input", prediction: Any) -> None:
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

    def _named(self, one: "_Input", error: InvalidInput) -> InvalidInput:
        """Return the refusal of an input with the name of its field in this request."""
        head, dot, rest = (error.param or "inputs").partition(".")
        if head != "inputs":
            return error
        param = self.asked.name_of(one.number) + dot + rest
        return InvalidInput(f"'{param}': {error.message}", param=param, code=error.code)


@dataclass(slots=True, eq=False)
class _Input:
    request: _Request
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
