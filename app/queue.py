"""Sending work by name. A message is a wake-up that holds an id; the row is the truth."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
from celery import Celery

RUN_JOB = "tunesmith.run_job"
RUN_EXPORT = "tunesmith.run_export"


@dataclass(frozen=True, slots=True)
class Line:
    """One kind of work that messages wake workers for: a queue, and the task's name in it."""

    queue: str
    task: str


JOBS = Line("train", RUN_JOB)
# A queue of their own: whoever trains for hours takes no message from the other meanwhile.
EXPORTS = Line("export", RUN_EXPORT)


def make_celery(broker_url: str) -> Celery:
    """Return the Celery app that the API sends with and the worker listens with."""
    app = Celery("tunesmith", broker=_transport_url(broker_url), set_as_current=False)
    app.conf.update(
        # A job outlives any visibility timeout: the message is acknowledged at once, and the
        # lease, not the broker, brings a job back when its worker dies.
        task_acks_late=False,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_publish_retry=False,
        task_default_queue=JOBS.queue,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=_transport_options(broker_url),
    )
    return app


def send_wake_ups(app: Celery, ids: Iterable[str], line: Line = JOBS) -> None:
    """Send one message a job, or an export.

    Raises:
        Exception: whatever the broker's client raises when it cannot be reached.
    """
    with app.connection_for_write(connect_timeout=2) as connection:
        for one in ids:
            app.send_task(
                line.task, args=[one], queue=line.queue, connection=connection, retry=False
            )


def count_waiting(app: Celery, line: Line = JOBS) -> int:
    """Return how many messages no worker has taken yet.

    Raises:
        Exception: whatever the broker's client raises when it cannot be reached.
    """
    with app.connection_for_write(connect_timeout=2) as connection:
        declared = connection.default_channel.queue_declare(queue=line.queue)
        return int(declared.message_count)


def check_broker(app: Celery, timeout_seconds: float) -> Mapping[str, str]:
    """Ask the broker once whether it is there.

    Returns:
        Settings of a Redis that says how it is set; nothing of a directory.

    Raises:
        Exception: whatever the broker's client raises when it cannot be reached in time.
    """
    limits = {"socket_connect_timeout": timeout_seconds, "socket_timeout": timeout_seconds}
    with app.connection_for_write(transport_options=limits) as connection:
        # Not `connect`, which waits for seconds and then tries again.
        transport = connection.transport
        opened = transport.establish_connection()
        try:
            if transport.driver_type == "filesystem":
                return _check_directories(app)
            return _redis_settings(transport.create_channel(opened).client)
        finally:
            transport.close_connection(opened)


def _check_directories(app: Celery) -> Mapping[str, str]:
    options = app.conf.broker_transport_options
    for directory in (options["data_folder_in"], options["control_folder"]):
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(f"cannot read and write in {directory}")
    return {}


def _redis_settings(client: Any) -> Mapping[str, str]:
    try:
        settings: Mapping[str, str] = client.config_get("maxmemory-policy", "appendonly")
    except redis.ResponseError:
        return {}  # A hosted one may keep its settings to itself.
    return settings


def _transport_url(broker_url: str) -> str:
    # Celery takes the directory of its file-system transport as an option, not from the URL.
    return "filesystem://localhost//" if broker_url.startswith("filesystem://") else broker_url


def _transport_options(broker_url: str) -> dict[str, Any]:
    if broker_url.startswith("filesystem://"):
        return _filesystem_options(Path(urlsplit(broker_url).path))
    return {
        "visibility_timeout": 43_200,
        "socket_keepalive": True,
        "socket_timeout": 30,
        "socket_connect_timeout": 5,
        "health_check_interval": 25,
        "global_keyprefix": "tunesmith:",
    }


def _filesystem_options(directory: Path) -> dict[str, Any]:
    # Whoever can write here can start work: the directory is the owner's alone.
    for name in ("messages", "control"):
        (directory / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    return {
        "data_folder_in": str(directory / "messages"),
        "data_folder_out": str(directory / "messages"),
        "control_folder": str(directory / "control"),
        "store_processed": False,
        # One message is taken at each poll: the default of a second would be felt.
        "polling_interval": 0.05,
    }
