"""The auditor on logs made by hand: it must see each kind of wrong, and nothing in a clean run."""

from dataclasses import replace
from typing import Any

import pytest

from app.db.repositories.adapters import Adapter
from app.db.repositories.events import Event
from app.db.repositories.jobs import Job
from app.domain.job_state import JobStatus
from tests.chaos.checker import (
    check,
    count_repeats,
    failed_jobs,
    lost_jobs,
    overlaps,
    wrong_epochs,
    wrong_results,
    wrong_stories,
    zombie_steps,
)
from tests.chaos.evidence import Evidence, Published, recipe_of
from tests.chaos.experiments.cancels import computed_after
from tests.chaos.experiments.freezes import takeovers
from tests.chaos.experiments.torn import Damage, wrong_resumes
from tests.chaos.nemesis import Freeze
from worker.training.step_log import Phase, StepLine

DIGEST = "a" * 64


def line(epoch: int, step: int, phase: Phase, time: float, job: str = "job", pid: int = 1) -> Any:
    return StepLine(job, epoch, step, phase, time, pid)


def steps(epoch: int, first: int, last: int, start: float) -> list[StepLine]:
    """Return whole steps, a second each."""
    return [
        line(epoch, step, phase, start + step - first + offset)
        for step in range(first, last + 1)
        for phase, offset in (("begin", 0.0), ("end", 0.9))
    ]


def job_row(**fields: Any) -> Job:
    values: dict[str, Any] = dict.fromkeys(Job.__dataclass_fields__)
    values |= {
        "id": "job",
        "status": JobStatus.SUCCEEDED,
        "seed": 1,
        "metadata": {"records": "8", "epochs": "1"},
        "lease_epoch": 2,
        "attempts": 1,
        "result_files": ["file-1"],
    }
    return Job(**(values | fields))


def event(message: str, level: str = "info") -> Event:
    return Event(1, "ftevent-1", "job", 0.0, level, "message", message, None)


def clean_run() -> Evidence:
    row = job_row()
    adapter = Adapter(
        name="ft:x",
        project_id="project",
        job_id=row.id,
        base_model="toy",
        task="text-generation",
        storage_prefix="jobs/job/e2/step-4",
        manifest_sha256="m",
        step=4,
        is_final=True,
        created_at=0.0,
    )
    return Evidence(
        accepted=frozenset({row.id}),
        jobs={row.id: row},
        stories={row.id: [event("The job has successfully completed")]},
        published=[Published(adapter, DIGEST, None)],
        results=["file-1"],
        steps=[*steps(1, 1, 3, 0), line(1, 2, "checkpoint", 1.95), *steps(2, 3, 4, 10)],
    )


def test_a_clean_run_has_no_violation() -> None:
    verdict = check(clean_run(), {recipe_of(job_row()): DIGEST})
    assert verdict.violations == []
    assert (verdict.published, verdict.bit_equal, verdict.zombie_steps) == (1, 1, 0)


@pytest.mark.parametrize("status", [JobStatus.RUNNING, JobStatus.QUEUED, JobStatus.PAUSED])
def test_a_job_that_has_not_ended_is_lost(status: JobStatus) -> None:
    assert lost_jobs(replace(clean_run(), jobs={"job": job_row(status=status)})) == ["job"]


def test_an_accepted_job_without_a_row_is_lost() -> None:
    assert lost_jobs(replace(clean_run(), accepted=frozenset({"job", "gone"}))) == ["gone"]


def test_a_job_that_fails_was_wronged_unless_it_was_made_to() -> None:
    run = replace(clean_run(), jobs={"job": job_row(status=JobStatus.FAILED, error={"code": "x"})})
    assert failed_jobs(run, may_fail=()) == ["job: failed: {'code': 'x'}"]
    assert failed_jobs(run, may_fail={"job"}) == []
    assert any("failed" in one for one in check(run, {recipe_of(job_row()): DIGEST}).violations)


def test_a_step_that_ends_after_its_successor_began_is_a_zombies() -> None:
    log = [*steps(1, 1, 2, 0), *steps(2, 1, 2, 10), line(1, 3, "begin", 9), line(1, 3, "end", 10.5)]
    assert [(x.epoch, x.step) for x in zombie_steps(log)] == [(1, 3)]
    assert overlaps(log) == [("job", 1, 2)]


def test_attempts_one_after_the_other_do_not_overlap() -> None:
    log = [*steps(1, 1, 2, 0), *steps(2, 1, 2, 10)]
    assert (zombie_steps(log), overlaps(log)) == ([], [])


def test_jobs_side_by_side_do_not_overlap() -> None:
    assert overlaps([line(1, 1, "begin", 0, "a"), line(2, 1, "begin", 0, "b")]) == []


def test_steps_are_repeated_and_some_needlessly() -> None:
    # Steps 3 and 4 are lost with the attempt; of step 2 there was a checkpoint.
    log = [*steps(1, 1, 4, 0), line(1, 2, "checkpoint", 1.95), *steps(2, 2, 5, 10)]
    repeats = count_repeats(log)
    assert (repeats.computed, repeats.repeated, repeats.beyond_checkpoint) == (8, 3, 1)


def test_a_checkpoint_after_the_next_attempt_began_covers_nothing() -> None:
    log = [*steps(1, 1, 2, 0), line(1, 2, "checkpoint", 11), *steps(2, 1, 2, 10)]
    assert count_repeats(log).beyond_checkpoint == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"published": []}, "succeeded with 0 final adapters"),
        ({"jobs": {"job": job_row(result_files=None)}, "results": []}, "result files None"),
        ({"jobs": {"job": job_row(status=JobStatus.FAILED)}}, "failed with 1 final adapters"),
        ({"results": ["file-1", "file-2"]}, "2 files of results, of which jobs name 1"),
    ],
)
def test_a_result_too_many_or_too_few_is_seen(changes: dict[str, Any], expected: str) -> None:
    assert expected in "\n".join(wrong_results(replace(clean_run(), **changes)))


def test_a_damaged_adapter_is_seen() -> None:
    run = clean_run()
    damaged = replace(run.published[0], damage="adapter_model.safetensors is not what was listed")
    assert wrong_results(replace(run, published=[damaged])) == [damaged.damage]


def test_other_weights_than_those_of_an_undisturbed_run_are_seen() -> None:
    verdict = check(clean_run(), {recipe_of(job_row()): "b" * 64})
    assert verdict.bit_equal == 0
    assert "differ" in verdict.violations[0]


@pytest.mark.parametrize("number", [0, 2])
def test_a_job_ends_exactly_once(number: int) -> None:
    stories = {"job": [event("The job has successfully completed")] * number}
    assert wrong_stories(stories, clean_run()) == [f"job: {number} events tell of its end"]


def test_epochs_only_rise() -> None:
    log = [line(2, 1, "begin", 0), line(1, 2, "begin", 1), line(3, 1, "begin", 2)]
    found = wrong_epochs(replace(clean_run(), steps=log))
    assert found == [
        "job: an epoch began a step after a higher one",
        "job: epoch 3 was never claimed",
    ]


def test_what_is_left_over_is_a_violation() -> None:
    run = replace(clean_run(), left_over=["7 worker.training.child"])
    verdict = check(run, {recipe_of(job_row()): DIGEST})
    assert verdict.violations == ["left over: 7 worker.training.child"]


def test_a_takeover_is_one_that_happens_during_the_freeze() -> None:
    log = [line(1, 1, "begin", 0, pid=1), line(2, 1, "begin", 5, pid=2)]
    assert takeovers(log, [Freeze(frozenset({1}), 0.5, 9)]) == 1
    assert takeovers(log, [Freeze(frozenset({1}), 0.5, 4)]) == 0


def test_a_cancelled_job_that_is_still_computed_is_seen() -> None:
    log = [line(1, 1, "begin", 4), line(1, 2, "begin", 7)]
    assert len(computed_after(log, {"job": 1.0}, 5)) == 1
    assert computed_after(log, {"job": 3.0}, 5) == []


def test_going_on_from_a_damaged_checkpoint_is_seen() -> None:
    damage = Damage("job", epoch=1, next_step=3, what="flipped")
    assert wrong_resumes(steps(2, 3, 4, 0), [damage]) == []
    assert wrong_resumes(steps(2, 5, 6, 0), [damage]) != []
