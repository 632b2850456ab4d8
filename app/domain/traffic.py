"""What versions answered, as numbers that can be added up: by process, by second, for ever.

A tally of two lots of requests is the sum of their tallies. Means and their variances are exact;
quantiles come from a histogram whose bounds grow by a fixed ratio.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

# Whether answers are given to those who wait for them, to a batch at low priority, or to nobody:
# those of a shadow are only compared.
Role = Literal["answer", "batch", "shadow"]

# What became of a request: refused is what its caller is at fault for, or a full queue; cancelled
# what nobody waited for.
Outcome = Literal["answered", "failed", "refused", "cancelled"]

# Bounds of the histogram lie at powers of 2, in seconds, and between them: neighbours are 9 %
# apart, so that the middle of a bucket is within 5 % of whatever is in it.
BUCKETS_PER_OCTAVE = 8
_SHORTEST_SECONDS = 1e-5


@dataclass(frozen=True, slots=True)
class Version:
    """What requests are counted by.

    Attributes:
        alias_id: empty where the model was called by its own name; then the revision is 0.
    """

    project_id: str
    model: str
    alias_id: str = ""
    revision: int = 0
    role: Role = "answer"


@dataclass(frozen=True, slots=True)
class Observation:
    """One request, and how it went.

    Attributes:
        seconds: until the answer was complete.
        first_token_seconds: until a stream held something to read; None if it was no stream.
    """

    outcome: Outcome
    seconds: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ShadowSample:
    """One request, answered by a version and by a shadow.

    Attributes:
        is_identical: None if the shadow gave no answer.
        similarity: see `likeness.Likeness`.
        error: why the shadow gave no answer.
        contents: the request and both answers as JSON text, if they are to be kept.
    """

    project_id: str
    alias_id: str
    revision: int
    route: str
    model: str
    shadow_model: str
    seconds: float
    shadow_seconds: float
    completion_tokens: int
    shadow_completion_tokens: int
    is_identical: bool | None
    similarity: float | None
    error: str | None
    contents: str | None


class Durations(msgspec.Struct, forbid_unknown_fields=True):
    """How long some requests took.

    Attributes:
        histogram: how many fell into each bucket, by its number.
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    histogram: dict[int, int] = msgspec.field(default_factory=dict)

    def add(self, seconds: float) -> None:
        self.count += 1
        self.total += seconds
        self.squares += seconds * seconds
        bucket = _bucket_of(seconds)
        self.histogram[bucket] = self.histogram.get(bucket, 0) + 1

    def merge(self, other: "Durations") -> None:
        self.count += other.count
        self.total += other.total
        self.squares += other.squares
        for bucket, count in other.histogram.items():
            self.histogram[bucket] = self.histogram.get(bucket, 0) + count

    def quantile(self, share: float) -> float | None:
        """Return the time within which a share of the requests were done, in seconds."""
        wanted = math.ceil(share * self.count)
        for bucket in sorted(self.histogram):
            wanted -= self.histogram[bucket]
            if wanted <= 0:
                return _middle_of(bucket)
        return None


class Tally(msgspec.Struct, forbid_unknown_fields=True):
    """How many requests went how. Durations and tokens are of those that were answered.

    Attributes:
        dropped: of a shadow, requests that it was not sent because too many were under way.
    """

    requests: int = 0
    failed: int = 0
    refused: int = 0
    cancelled: int = 0
    dropped: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    durations: Durations = msgspec.field(default_factory=Durations)
    first_tokens: Durations = msgspec.field(default_factory=Durations)

    @property
    def answered(self) -> int:
        return self.durations.count

    def add(self, one: Observation) -> None:
        self.requests += 1
        self.failed += one.outcome == "failed"
        self.refused += one.outcome == "refused"
        self.cancelled += one.outcome == "cancelled"
        if one.outcome != "answered":
            return
        self.prompt_tokens += one.prompt_tokens
        self.completion_tokens += one.completion_tokens
        self.durations.add(one.seconds)
        if one.first_token_seconds is not None:
            self.first_tokens.add(one.first_token_seconds)

    def merge(self, other: "Tally") -> None:
        self.requests += other.requests
        self.failed += other.failed
        self.refused += other.refused
        self.cancelled += other.cancelled
        self.dropped += other.dropped
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.durations.merge(other.durations)
        self.first_tokens.merge(other.first_tokens)

    def as_json(self) -> dict[str, Any]:
        """Return it as what a JSON column holds."""
        built: dict[str, Any] = msgspec.to_builtins(self, str_keys=True)
        return built

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> "Tally":
        return msgspec.convert(fields, cls, strict=False)


def _bucket_of(seconds: float) -> int:
    return math.floor(math.log2(max(seconds, _SHORTEST_SECONDS)) * BUCKETS_PER_OCTAVE)


def _middle_of(bucket: int) -> float:
    return float(2 ** ((bucket + 0.5) / BUCKETS_PER_OCTAVE))
