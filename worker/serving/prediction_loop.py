"""The prediction loop: inputs that wait for one model are computed together, projects take turns.

One thread owns every model of a task beside text generation. Each pass is one batch of one model:
that of the project whose turn it is, and within a project models take turns, too. It takes as many
inputs that wait for this model as stay within a budget, of all projects by turns, each project's in
the order in which they came. Inputs of low priority wait until there are no others.
"""

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch

from app.domain.errors import EngineUnavailable, TooManyRequests
from app.inference.port import Priority
from worker.serving.fair_line import FairLine
from worker.serving.prediction_request import Asked, Pending, PendingInput, Predicted, TaskModel
from worker.serving.turnover import Turnover
from worker.tasks import Example

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PredictionStats:
    """What the loop is doing, and has done since it began; all but `passes` counts inputs."""

    waiting: int
    passes: int
    predicted: int
    dropped: int
    refused: int


class PredictionLoop:
    """Predicts with every loaded model, on a thread of its own.

    Args:
        budget: what the inputs of one pass may cost together, once padded to the longest.
        max_queued: inputs that may wait, of each priority.
        max_queued_per_project: how many of them may be one project's; None is all.
    """

    def __init__(
        self, budget: int, max_queued: int, max_queued_per_project: int | None = None
    ) -> None:
        self.budget = budget
        self._max_queued = max_queued
        self._max_queued_per_project = max_queued_per_project or max_queued
        # Guards what several threads use, and wakes the loop's own when there is work.
        self._changed = threading.Condition()
        self._lines: dict[Priority, FairLine[PendingInput]] = {
            "normal": FairLine(),
            "low": FairLine(),
        }
        self._turnover = Turnover()
        self._present: TaskModel | None = None
        self._is_closing = False
        self._passes = self._predicted = self._dropped = self._refused = 0
        self._thread = threading.Thread(target=self._run, name="prediction", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, asked: Asked) -> "Future[Predicted]":
        """Queue the inputs of a request; cancelling the future drops those that still wait.

        Raises:
            TooManyRequests: too many inputs are waiting, of this project or of all.
            EngineUnavailable: the loop has ended.
        """
        request = Pending(asked)
        with self._changed:
            if self._is_closing or not self.is_alive:
                raise EngineUnavailable()
            self._drop_ended()
            self._refuse_too_many(asked)
            if self._present is None and not self._num_waiting():
                self._turnover.begin()
            line = self._lines[asked.caller.priority]
            for number, value in enumerate(asked.inputs):
                line.add(asked.caller.project_id, PendingInput(request, number, value), asked.model)
            self._changed.notify()
        return request.done

    def is_idle(self, model: TaskModel) -> bool:
        """Return whether no input of a model is computed or waits."""
        with self._changed:
            is_waited_for = any(line.has_lane(model) for line in self._lines.values())
            return model is not self._present and not is_waited_for

    def stats(self) -> PredictionStats:
        with self._changed:
            return PredictionStats(
                self._num_waiting(), self._passes, self._predicted, self._dropped, self._refused
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
                while (turn := self._next_turn()) is not None:
                    line, model = turn
                    inputs = self._gather(line, model)
                    if inputs:
                        self._compute(model, inputs)
        finally:
            self._end()

    def _refuse_too_many(self, asked: Asked) -> None:
        line = self._lines[asked.caller.priority]
        bounds = (
            # Of the project, which gets a part of what is computed, and of all.
            (
                line.length_of(asked.caller.project_id),
                self._max_queued_per_project,
                line.projects,
            ),
            (len(line), self._max_queued, 1),
        )
        for waiting, limit, parts in bounds:
            excess = waiting + len(asked.inputs) - limit
            # In an empty queue there is room for any request, however long.
            if waiting and excess > 0:
                self._refused += len(asked.inputs)
                seconds = self._turnover.seconds_until(min(excess, waiting) * parts)
                raise TooManyRequests(
                    "the engine has as many inputs waiting as it accepts; try again in "
                    f"{seconds} s",
                    retry_after_seconds=seconds,
                )

    def _next_turn(self) -> tuple[FairLine[PendingInput], TaskModel] | None:
        """Wait for work and return which line and which model are next; None is the end."""
        with self._changed:
            self._present = None
            self._changed.wait_for(lambda: self._is_closing or self._num_waiting())
            if self._is_closing:
                return None
            line = self._lines["normal"] if len(self._lines["normal"]) else self._lines["low"]
            turn = line.first()
            assert turn is not None
            _, model, _ = turn
            assert isinstance(model, TaskModel)
            self._present = model
            return line, model

    def _gather(self, line: FairLine[PendingInput], model: TaskModel) -> list[PendingInput]:
        """Return the inputs of the next pass, encoded; those that cannot be fail their request."""
        together: list[PendingInput] = []
        longest = 0
        while (one := self._take(line, model)) is not None:
            example = one.example or one.request.encode(one)
            if example is None:
                continue
            longest = max(longest, example.cost)
            is_alone = one.request.asked.alone is not None
            if together and (is_alone or longest * (len(together) + 1) > self.budget):
                self._put_back(line, one)
                break
            together.append(one)
            if is_alone:
                break
        return together

    def _compute(self, model: TaskModel, inputs: Sequence[PendingInput]) -> None:
        try:
            predictions = _computed(model, inputs)
        except Exception as error:
            # Whose input it was is found by asking for each request by itself.
            by_request: dict[Pending, list[PendingInput]] = {}
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
            self._turnover.note(len(inputs))
        for one, prediction in zip(inputs, predictions, strict=True):
            one.request.settle(one, prediction)

    def _take(self, line: FairLine[PendingInput], model: TaskModel) -> PendingInput | None:
        with self._changed:
            while (project_id := line.project_with(model)) is not None:
                one = line.take(project_id, model)
                if not one.request.done.done():
                    return one
                self._dropped += 1
            return None

    def _put_back(self, line: FairLine[PendingInput], one: PendingInput) -> None:
        asked = one.request.asked
        with self._changed:
            line.put_back(asked.caller.project_id, one, asked.model)

    def _drop_ended(self) -> None:
        for line in self._lines.values():
            self._dropped += len(line.drop(lambda one: one.request.done.done()))

    def _num_waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    def _end(self) -> None:
        """Fail what is left, so that no one waits for a thread that has ended."""
        with self._changed:
            self._is_closing = True
            left = {one.request for line in self._lines.values() for one in line}
            for line in self._lines.values():
                line.clear()
        for request in left:
            request.fail(EngineUnavailable())


def _computed(model: TaskModel, inputs: Sequence[PendingInput]) -> list[Any]:
    first = inputs[0]
    if first.request.asked.alone is None:
        return _predict(model, [one.encoded for one in inputs])
    with torch.inference_mode(False), torch.enable_grad():
        return [first.request.asked.alone(first.value, first.encoded)]


def _predict(model: TaskModel, examples: Sequence[Example]) -> list[Any]:
    device = next(model.module.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in model.task.collate(examples).items()}
    return model.task.predict(model.module, batch)
