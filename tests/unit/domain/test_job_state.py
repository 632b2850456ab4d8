from itertools import product

import pytest

from app.domain.job_state import TERMINAL, TRANSITIONS, JobStatus, sources_of

ALLOWED = {
    "validating_files": {"queued", "paused", "failed", "cancelled"},
    "queued": {"running", "paused", "failed", "cancelled"},
    "running": {"succeeded", "failed", "cancelled", "paused", "queued"},
    "paused": {"validating_files", "queued", "cancelled"},
    "succeeded": set(),
    "failed": set(),
    "cancelled": set(),
}


@pytest.mark.parametrize(("source", "target"), list(product(JobStatus, repeat=2)))
def test_a_move_is_allowed_exactly_where_the_design_says(
    source: JobStatus, target: JobStatus
) -> None:
    is_allowed = target.value in ALLOWED[source.value]
    assert (target in TRANSITIONS[source]) == is_allowed
    assert (source in sources_of(target)) == is_allowed


def test_ended_jobs_stay_as_they_are() -> None:
    assert {status.value for status in TERMINAL} == {"succeeded", "failed", "cancelled"}
