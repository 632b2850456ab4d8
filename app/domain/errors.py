"""Every error a caller can meet, in domain words. `app/api/errors.py` alone maps them to HTTP.

DomainError
├── NotFound
├── Conflict
│   ├── InvalidTransition
│   ├── FileInUse
│   └── ModelInUse
├── InvalidInput
│   ├── InvalidFile
│   └── UnknownName
├── RequestInFlight
├── IdempotencyKeyReused
├── TooLarge
├── Unauthenticated
├── TooManyRequests
├── Unavailable
│   ├── EngineUnavailable
│   ├── DatabaseUnavailable
│   └── StorageFull
├── ModelDamaged
├── LeaseLost
├── TrainingFailed
└── ExportFailed
"""

from typing import Any


class DomainError(Exception):
    """The request could not be completed.

    Attributes:
        message: a sentence for the person who made the request.
        code: a stable machine-readable word.
        param: the request field, `file line` or parameter at fault, if one is.
    """

    code: str | None = None

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        self.message = message or (self.__doc__ or "").strip().splitlines()[0]
        self.param = param
        self.code = code or type(self).code
        super().__init__(self.message)


class NotFound(DomainError):
    """No such object in this project."""

    code = "not_found"


class Conflict(DomainError):
    """The object is not in a state that allows this."""

    code = "conflict"


class InvalidTransition(Conflict):
    """The job is not in a state that allows this."""

    code = "invalid_job_state"


class FileInUse(Conflict):
    """The file is used by a job that has not ended."""

    code = "file_in_use"


class ModelInUse(Conflict):
    """The model is needed by a job that has not ended, or by an ensemble."""

    code = "model_in_use"


class InvalidInput(DomainError):
    """The request is not valid."""

    code = "invalid_value"


class InvalidFile(InvalidInput):
    """The file is not a valid dataset."""

    code = "invalid_file"


class UnknownName(InvalidInput):
    """No such name is registered."""

    code = "unknown_name"


class RequestInFlight(DomainError):
    """A request with this Idempotency-Key is still being answered; try again."""

    code = "idempotency_key_in_use"


class IdempotencyKeyReused(DomainError):
    """This Idempotency-Key was used for another request; use a new key for each request."""

    code = "idempotency_key_reused"


class TooLarge(DomainError):
    """The upload is larger than the server accepts."""

    code = "too_large"


class Unauthenticated(DomainError):
    """A valid API key is required."""

    code = "invalid_api_key"


class TooManyRequests(DomainError):
    """Too many requests are waiting; try again."""

    code = "rate_limit_exceeded"

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        """See `DomainError`; `retry_after_seconds` is when it is worth a try, if that is known."""
        super().__init__(message, param=param, code=code)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(DomainError):
    """A part of the service is not available right now; try again."""

    code = "unavailable"


class EngineUnavailable(Unavailable):
    """The inference engine is not available right now; try again."""

    code = "engine_unavailable"


class DatabaseUnavailable(Unavailable):
    """The database is not available right now; try again."""

    code = "database_unavailable"


class StorageFull(Unavailable):
    """The server's disk is full; nothing was stored."""

    code = "storage_full"


class ModelDamaged(DomainError):
    """The stored weights of this model are damaged; they are not served."""

    code = "model_damaged"


class LeaseLost(DomainError):
    """Another attempt holds this job, or it has ended: nothing was written."""

    code = "lease_lost"


class TrainingFailed(DomainError):
    """Training failed."""

    code = "training_failed"


class ExportFailed(DomainError):
    """The model could not be exported.

    Attributes:
        verification: what was measured, if it came to that; as the wire has it.
    """

    code = "export_failed"

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        verification: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.verification = verification
