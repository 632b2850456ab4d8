"""What this process has answered and has not written down yet. No I/O: a service writes it."""

import asyncio
import threading
from dataclasses import dataclass, field

from app.domain.traffic import Observation, ShadowSample, Tally, Version

# Should the database be away for long, the oldest are forgotten; tallies grow with versions only.
MAX_ANSWERS = 50_000
MAX_SAMPLES = 1_000


@dataclass(frozen=True, slots=True)
class AliasAnswer:
    """Which version gave an answer."""

    answer_id: str
    version: Version


@dataclass(slots=True)
class Unwritten:
    """What is yet to be written."""

    tallies: dict[Version, Tally] = field(default_factory=dict)
    answers: list[AliasAnswer] = field(default_factory=list)
    samples: list[ShadowSample] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.tallies or self.answers or self.samples)


class Traffic:
    """Collects from any thread; nothing here waits for anything but another thread's line.

    Attributes:
        background: what goes on after an answer was given.
        writing: held by whoever takes what is unwritten, until it is written.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unwritten = Unwritten()
        self.writing = threading.Lock()
        self.background: set[asyncio.Task[None]] = set()

    def count(self, version: Version, one: Observation) -> None:
        with self._lock:
            self._tally(version).add(one)

    def count_dropped(self, version: Version) -> None:
        with self._lock:
            self._tally(version).dropped += 1

    def note_answer(self, answer: AliasAnswer) -> None:
        with self._lock:
            self._unwritten.answers.append(answer)

    def note_sample(self, sample: ShadowSample) -> None:
        with self._lock:
            self._unwritten.samples.append(sample)

    def take(self) -> Unwritten:
        """Return everything, which is the caller's to write now."""
        with self._lock:
            taken, self._unwritten = self._unwritten, Unwritten()
            return taken

    def put_back(self, taken: Unwritten) -> None:
        """Take again what could not be written."""
        with self._lock:
            for version, tally in taken.tallies.items():
                self._tally(version).merge(tally)
            answers = [*taken.answers, *self._unwritten.answers]
            self._unwritten.answers = answers[-MAX_ANSWERS:]
            samples = [*taken.samples, *self._unwritten.samples]
            self._unwritten.samples = samples[-MAX_SAMPLES:]

    def _tally(self, version: Version) -> Tally:
        return self._unwritten.tallies.setdefault(version, Tally())
