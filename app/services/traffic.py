"""Writing down what this process has answered, about every second, from a thread of its own.

No answer waits for it. What a crash loses is what was answered since the last time.
"""

import logging
import threading

from app.db.database import Database
from app.db.repositories import shadow_samples
from app.db.repositories import traffic as rows
from app.domain.errors import Unavailable
from app.resources import Resources

WRITE_EVERY_SECONDS = 1.0

_log = logging.getLogger("tunesmith.traffic")


class TrafficWriter:
    """Writes until it is closed, and once more then."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        # Opened before there are threads that would open it twice.
        self._traffic = resources.traffic
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        is_closing = False
        while not is_closing:
            is_closing = self._closing.wait(WRITE_EVERY_SECONDS)
            try:
                write(self._resources)
            except Unavailable as error:
                _log.warning("what was answered is written later: %s", error.message)
            except Exception:  # Counting must outlive whatever goes wrong once.
                _log.exception("what was answered could not be written; trying again")


def write(resources: Resources) -> None:
    """Write down everything that was answered so far. Raises: as `Database.write` does."""
    traffic = resources.traffic
    # One after the other: whoever comes second finds written what the first one took.
    with traffic.writing:
        taken = traffic.take()
        if taken.is_empty:
            return
        try:
            with resources.database.write() as connection:
                answers = [(one.answer_id, one.version) for one in taken.answers]
                rows.add_answers(connection, answers)
                shadow_samples.add(connection, taken.samples)
                rows.add(connection, taken.tallies)
        except BaseException:
            traffic.put_back(taken)
            raise


def forget_old(database: Database, age_seconds: float) -> None:
    """Forget which version gave older answers, and what shadows said to older requests."""
    with database.write() as connection:
        rows.remove_answers_before(connection, age_seconds)
        shadow_samples.remove_before(connection, age_seconds)
