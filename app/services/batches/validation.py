"""Checking the input of a batch line by line before anything of it runs."""

from collections.abc import Callable
from contextlib import closing
from typing import BinaryIO

from app.db.repositories import batch_leases
from app.db.repositories.batches import Batch
from app.domain.batches import MAX_ERRORS, MAX_LINES, BatchError, BatchStatus
from app.domain.errors import DomainError, InvalidInput, NotFound
from app.domain.storable import storable
from app.resources import Resources
from app.services import inference
from app.services.batches.endpoints import ENDPOINTS
from app.services.batches.holding import Hold
from app.services.batches.reading import open_input, read_lines
from app.services.batches.wire import Line, Wire


def validate(resources: Resources, wire: Wire, hold: Hold, batch: Batch) -> None:
    """Bring a batch from `validating` to `in_progress`, or to `failed` with what is wrong.

    Raises:
        NotFound: the content of the input is gone.
        LeaseLost: another holds the batch, or it is being cancelled.
    """

    def check_model(name: str) -> None:
        inference.check(resources, batch.project_id, name, ENDPOINTS[batch.endpoint].route)

    survey = Survey(lambda number, raw: wire.parse(batch.endpoint, number, raw), check_model)
    with closing(open_input(resources, batch)) as stream:
        survey.take(stream, hold.check)
    with resources.database.write() as connection:
        if survey.errors:
            batch_leases.fail(
                connection, batch.id, hold.epoch, BatchStatus.VALIDATING, survey.errors
            )
            return
        batch_leases.move(
            connection,
            batch.id,
            hold.epoch,
            BatchStatus.VALIDATING,
            BatchStatus.IN_PROGRESS,
            line_count=survey.line_count,
            model=survey.model,
        )


class Survey:
    """What an input holds, and what is wrong with it: up to `MAX_ERRORS` mistakes.

    Args:
        parse: reads a line; raises InvalidInput.
        check_model: refuses a name that cannot answer; it is asked once for each.
    """

    def __init__(
        self, parse: Callable[[int, bytes], Line], check_model: Callable[[str], None]
    ) -> None:
        self.errors: list[BatchError] = []
        self.line_count = 0
        self._parse = parse
        self._check_model = check_model
        self._first_lines: dict[str, int] = {}
        self._models: dict[str, DomainError | None] = {}

    @property
    def model(self) -> str | None:
        """What all lines name, if they all name the same."""
        return next(iter(self._models)) if len(self._models) == 1 else None

    def take(self, stream: BinaryIO, check: Callable[[], None]) -> None:
        """Read an input to its end, or until so much is wrong that no more is told.

        Args:
            check: is called at each line, and may break off by raising.
        """
        try:
            for number, raw in read_lines(stream):
                check()
                self.line_count += 1
                if self.line_count > MAX_LINES:
                    message = f"The input holds more than {MAX_LINES:,} requests."
                    self.errors = [BatchError("too_many_requests", message, number)]
                    return
                self._take(number, raw)
                if len(self.errors) >= MAX_ERRORS:
                    return
        except InvalidInput as error:
            self.errors.append(BatchError("line_too_long", error.message))
        if not self.line_count and not self.errors:
            self.errors.append(BatchError("empty_file", "The input holds no request."))

    def _take(self, number: int, raw: bytes) -> None:
        try:
            line = self._parse(number, raw)
        except InvalidInput as error:
            self._note(number, error)
            return
        first = self._first_lines.setdefault(line.custom_id, number)
        if first != number:
            message = f"The custom_id {line.custom_id!r} is that of line {first}, too."
            self.errors.append(BatchError("duplicate_custom_id", message, number, "custom_id"))
        name = line.body["model"]
        if name not in self._models:
            self._models[name] = self._refusal_of(name)
        if (refusal := self._models[name]) is not None:
            self._note(number, refusal)

    def _refusal_of(self, name: str) -> DomainError | None:
        try:
            self._check_model(name)
        except (InvalidInput, NotFound) as error:
            return type(error)(error.message, param=f"body.{error.param}", code=error.code)
        return None

    def _note(self, number: int, error: DomainError) -> None:
        param = None if error.param is None else storable(error.param)
        code = error.code or "invalid_value"
        self.errors.append(BatchError(code, storable(error.message), number, param))
