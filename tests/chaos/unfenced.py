"""A worker without any fence, to see whether the checker would notice: `python -m` this.

Every write of an attempt succeeds whatever its epoch, no lease is ever found lost, and the trainer
knows no deadline. Never used but by the control that must fail.
"""

from typing import Any

from sqlalchemy import Update, update

import worker.trainer
from app.db.repositories import jobs, leases
from app.db.repositories.jobs import Job
from app.db.repositories.leases import Renewal
from app.db.tables import jobs as table
from app.domain.errors import LeaseLost
from worker.__main__ import main
from worker.lease import Lease

_renew, _transition = leases.renew, jobs.transition


def remove_fences() -> None:
    """Take every guard of a lease out of this process."""
    leases.renew = _renew_whatever
    leases._under_lease = _under_no_lease
    jobs.transition = _transition_under_no_lease
    Lease.is_lost = property(lambda _: False)  # type: ignore[assignment,method-assign]
    worker.trainer._MODULE = "tests.chaos.unfenced_trainer"  # type: ignore[misc]


def _renew_whatever(*arguments: Any, **named: Any) -> Renewal:
    try:
        return _renew(*arguments, **named)
    except LeaseLost:
        return Renewal(pause_requested=False)


def _under_no_lease(job_id: str, _epoch: int) -> Update:
    return update(table).where(table.c.id == job_id)


def _transition_under_no_lease(*arguments: Any, epoch: int | None = None, **named: Any) -> Job:
    return _transition(*arguments, **named)


if __name__ == "__main__":
    remove_fences()
    main()
