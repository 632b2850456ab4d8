"""The Celery side of the worker: a message wakes the supervisor, a shutdown stops it."""

import threading
from typing import Any

from celery import Celery
from celery.signals import worker_ready, worker_shutting_down

from app.queue import RUN_JOB
from worker.supervisor import Supervisor
from worker.wake_ups import WakeUps


def register(app: Celery, supervisor: Supervisor, wake_ups: WakeUps) -> None:
    """Connect a supervisor, and what waits beside it, to the app's messages and signals."""

    @app.task(name=RUN_JOB)  # type: ignore[untyped-decorator]
    def run_job(job_id: str) -> None:
        # Which job to run is decided by the database: the message only says that there is one.
        supervisor.drain()

    def on_ready(**_: Any) -> None:
        # Also what was queued while no worker was there, whose messages may be lost.
        threading.Thread(target=_start, name="start", daemon=True).start()
        wake_ups.start()

    def _start() -> None:
        supervisor.warm_up()
        supervisor.drain()

    def on_shutting_down(**_: Any) -> None:
        supervisor.stop()
        wake_ups.stop()

    worker_ready.connect(on_ready, weak=False)
    worker_shutting_down.connect(on_shutting_down, weak=False)
