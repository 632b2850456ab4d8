"""Entry of the worker process: `python -m worker`, or `tunesmith worker`."""

import logging
import sys

from app.db.migrations import upgrade
from app.domain.errors import DomainError
from app.lifeline import hold_lifeline
from app.queue import EXPORTS
from app.resources import Resources
from app.settings import load_settings
from worker.celery_tasks import register
from worker.export_supervisor import ExportSupervisor
from worker.supervisor import Supervisor
from worker.wake_ups import WakeUps

# Workers need nothing of each other: the database says who does what.
_ALONE = ("--without-gossip", "--without-mingle", "--without-heartbeat")


def main() -> None:
    """Run a worker until it is told to stop."""
    hold_lifeline()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    settings = load_settings()
    resources = Resources(settings)
    upgrade(resources.database)
    supervisor = Supervisor(resources)
    wake_ups = WakeUps(resources.celery, EXPORTS, ExportSupervisor(resources))
    register(resources.celery, supervisor, wake_ups)
    try:
        # Threads, because a supervisor only waits: the work is done in the trainer.
        resources.celery.worker_main(
            ["--quiet", "worker", "--pool=threads", "--concurrency=1", "--loglevel=INFO", *_ALONE]
        )
    finally:
        was_asked_to_stop = supervisor.is_stopping
        supervisor.close()
        wake_ups.close()
    if not was_asked_to_stop:
        # Whoever keeps the worker running must not take this for a wanted end.
        sys.exit("tunesmith worker: the connection to the broker was lost for good")


if __name__ == "__main__":
    try:
        main()
    except DomainError as error:
        sys.exit(f"tunesmith worker: {error.message}")
