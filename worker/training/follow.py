"""A run as the ranks beside the first see it: they take a share of each step, and no decision."""

import logging
from contextlib import closing

from app.storage.port import open_storage
from worker.training.bases import WarmBases
from worker.training.checkpoints import locate_start
from worker.training.commands import Train
from worker.training.learner import Learner
from worker.training.prepare import prepare
from worker.training.ranks import Ranks

_log = logging.getLogger("tunesmith.training")


def follow_job(command: Train, bases: WarmBases, ranks: Ranks, token_budget: int) -> None:
    """Take steps of a job when rank 0 does, until the run is over there.

    Raises:
        DomainError: as `run.run_job` does; also for what another rank cannot go on with.
    """
    storage = open_storage(command.storage_url)
    with (
        locate_start(storage, command.spec.start_from) as start,
        closing(prepare(command, bases, storage, token_budget, start).learner) as learner,
    ):
        join(learner, ranks)
        while ranks.is_step_next():
            # Whether the lease still stands is for rank 0 to look at: without it, nothing counts.
            learner.take_step(lambda: None)


def join(learner: Learner, ranks: Ranks) -> None:
    """Make a prepared learner one of those that take the steps of its run.

    Raises:
        RankFailed: another rank could not prepare its own.
    """
    is_shared = learner.share_steps(ranks)
    if not is_shared and ranks.rank == 0:
        _log.info("the steps of this run cannot be divided: one process takes them")
    ranks.start(learner.weights() if is_shared else None)
