"""Sweeps on rows: what a look starts, notes, prunes and finishes, and what a crash leaves."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, event, select, update

from app.db.clock import now
from app.db.database import Database
from app.db.migrations import downgrade, upgrade
from app.db.repositories import adapters, jobs, keys, sweep_trials, sweeps
from app.db.repositories.jobs import Job
from app.db.repositories.sweep_trials import SweepTrial
from app.db.repositories.sweeps import Standing, Sweep
from app.db.tables import files as file_table
from app.db.tables import jobs as job_table
from app.db.tables import sweep_trials as trial_table
from app.db.tables import sweeps as sweep_table
from app.domain.errors import FileInUse, InvalidInput, InvalidTransition, ModelInUse, NotFound
from app.domain.job_state import JobStatus
from app.domain.search_spaces import spaces_of
from app.domain.sweeps import Budget, SweepStatus, TrialState
from app.resources import Resources
from app.services import files, models
from app.services import sweeps as services
from app.services.job_checks import JobRequest
from app.services.sweep_looks import advance
from app.services.sweeper import Sweeper
from app.services.sweeps import SweepRequest
from tests.support.factories import BASE_MODEL, add_adapter, add_project, dataset, store_dataset
from tests.support.sweeping import now_is, opened, received, told

RATE = "method.supervised.hyperparameters.learning_rate_multiplier"
EPOCHS = "method.supervised.hyperparameters.n_epochs"
SPACES = {
    RATE: {"type": "float", "low": 0.1, "high": 10.0, "log": True},
    "tunesmith.adapter.r": {"type": "categorical", "choices": [4, 8]},
}


@pytest.fixture
def resources(database: Database, tmp_path: Path) -> Iterator[Resources]:
    with opened(database, f"filesystem://{tmp_path}/broker", tmp_path) as resources:
        yield resources


def asked(training_file: str, **changes: Any) -> SweepRequest:
    job = JobRequest(
        model=BASE_MODEL,
        training_file=training_file,
        validation_file=None,
        method="supervised",
        method_settings={},
        hyperparameters={
            "n_epochs": "auto",
            "batch_size": "auto",
            "learning_rate_multiplier": "auto",
        },
        task=None,
        adapter=None,
        training={},
        evaluation={},
        seed=None,
        suffix=None,
        metadata={"team": "a"},
    )
    job = replace(job, **changes.pop("job", {}))
    values: dict[str, Any] = {
        "job": job,
        "body": {"model": BASE_MODEL, "training_file": training_file},
        "spaces": spaces_of(changes.pop("parameters", SPACES)),
        "metric": None,
        "algorithm": "random",
        "pruner": None,
        "max_trials": 4,
        "max_parallel": 2,
        "budget": None,
        "seed": 7,
        "suffix": "trial",
        "metadata": None,
    }
    return SweepRequest(**values | changes)


def new_sweep(resources: Resources, *, records: int = 60, **changes: Any) -> Sweep:
    with resources.database.write() as connection:
        project = add_project(connection)
        file = store_dataset(connection, resources.storage, project, dataset(records))
        principal = keys.principal_of(connection, project)
        request = asked(file.id, **changes)
        return services.create(connection, resources.catalogue, principal, request)


def look(resources: Resources, sweep: Sweep) -> list[SweepTrial]:
    """Advance a sweep once, and return its trials."""
    advance(resources.database, resources.catalogue, sweep.id)
    return trials_of(resources, sweep)


def trials_of(resources: Resources, sweep: Sweep) -> list[SweepTrial]:
    with resources.database.read() as connection:
        return sweep_trials.list_all(connection, sweep.id)


def as_it_is(resources: Resources, sweep: Sweep) -> Sweep:
    with resources.database.read() as connection:
        return sweeps.get(connection, sweep.project_id, sweep.id)


def standing_of(resources: Resources, sweep: Sweep) -> Standing:
    with resources.database.read() as connection:
        return sweeps.standings(connection, [as_it_is(resources, sweep)])[sweep.id]


def job_of(resources: Resources, trial: SweepTrial) -> Job:
    assert trial.job_id is not None
    with resources.database.read() as connection:
        job = jobs.find(connection, trial.job_id)
    assert job is not None
    return job


def run(resources: Resources, trial: SweepTrial) -> None:
    """Let a worker claim a trial's job."""
    with resources.database.write() as connection:
        job_id = trial.job_id or ""
        jobs.transition(connection, job_id, JobStatus.QUEUED, message="queued")
        jobs.transition(connection, job_id, JobStatus.RUNNING, message="claimed", lease_epoch=1)


def end_epoch(resources: Resources, trial: SweepTrial, epoch: int, loss: float) -> None:
    with resources.database.write() as connection:
        adapters.add_checkpoint(
            connection,
            job_id=trial.job_id or "",
            step=10 * epoch,
            model=f"{trial.job_id}:{epoch}",
            metrics={"step": 10 * epoch, "train_loss": 1.0, "valid_loss": loss},
        )


def succeed(resources: Resources, trial: SweepTrial, loss: float | None, **fields: Any) -> None:
    run(resources, trial)
    metrics = {} if loss is None else {"loss": {"name": "loss", "base": 2.0, "tuned": loss}}
    with resources.database.write() as connection:
        jobs.transition(
            connection,
            trial.job_id or "",
            JobStatus.SUCCEEDED,
            message="done",
            report={"held_out_rows": 6, "metrics": metrics},
            finished_at=now(),
            **fields,
        )


def fail(resources: Resources, trial: SweepTrial) -> None:
    with resources.database.write() as connection:
        jobs.transition(
            connection,
            trial.job_id or "",
            JobStatus.FAILED,
            message="broken",
            error={"code": "broken", "message": "it broke", "param": None},
            finished_at=now(),
        )


def test_trials_are_jobs_of_the_project(resources: Resources) -> None:
    sweep = new_sweep(resources)
    trials = look(resources, sweep)
    assert [trial.number for trial in trials] == [0, 1]
    assert {trial.state for trial in trials} == {TrialState.RUNNING}
    with resources.database.read() as connection:
        listed = jobs.list_page(
            connection,
            sweep.project_id,
            metadata={"team": "a"},
            without_metadata=False,
            after=None,
            limit=10,
        ).items
    assert {job.id for job in listed} == {trial.job_id for trial in trials}
    for trial in trials:
        job = job_of(resources, trial)
        assert job.status is JobStatus.VALIDATING_FILES
        assert job.extension["sweep"] == sweep.id
        assert job.hyperparameters["learning_rate_multiplier"] == trial.parameters[RATE]
        assert job.extension["adapter"]["r"] == trial.parameters["tunesmith.adapter.r"]
        assert job.extension["evaluation"] == {"best_metric": "loss"}
        assert f":trial-{trial.number}:" in job.output_model
        # All are trained and judged on the same records.
        assert job.seed == sweep.seed
        assert f"Trial {trial.number} of sweep {sweep.id}" in told(resources, job)[-1]


def test_another_look_at_the_same_rows_does_nothing(resources: Resources) -> None:
    sweep = new_sweep(resources)
    trials = look(resources, sweep)
    assert look(resources, sweep) == trials
    assert as_it_is(resources, sweep) == sweep


def test_the_same_rows_and_seed_give_the_same_trials(resources: Resources) -> None:
    first, second, other = (new_sweep(resources, seed=seed) for seed in (7, 7, 8))
    drawn = [[trial.parameters for trial in look(resources, one)] for one in (first, second, other)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_a_look_is_written_whole_or_not_at_all(resources: Resources) -> None:
    """Break the look off at its first statement that writes, then at its second, and so on."""
    sweep = new_sweep(resources)
    first, second = look(resources, sweep)
    succeed(resources, first, 0.5)
    fail(resources, second)
    before = rows_of(resources)

    broken_off = 0
    while not _broke_off(resources, sweep, after=broken_off):
        assert rows_of(resources) == before
        broken_off += 1
    assert broken_off > 5
    trials = trials_of(resources, sweep)
    assert [trial.state for trial in trials] == [
        TrialState.SUCCEEDED,
        TrialState.FAILED,
        TrialState.RUNNING,
        TrialState.RUNNING,
    ]
    assert all(job_of(resources, trial) for trial in trials)


class Crash(Exception):
    pass


def _broke_off(resources: Resources, sweep: Sweep, *, after: int) -> bool:
    """Look at a sweep until so many statements have written; True if that was all of them."""
    written = 0

    def crash(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal written
        if statement.startswith(("INSERT", "UPDATE")):
            written += 1
            if written > after:
                raise Crash

    engine = resources.database.engine
    event.listen(engine, "before_cursor_execute", crash)
    try:
        advance(resources.database, resources.catalogue, sweep.id)
    except Crash:
        return False
    finally:
        event.remove(engine, "before_cursor_execute", crash)
    return True


def rows_of(resources: Resources) -> list[Any]:
    with resources.database.read() as connection:
        return [
            tuple(row)
            for table in (job_table, sweep_table, trial_table)
            for row in connection.execute(select(table).order_by(table.c.id))
        ]


def test_processes_that_look_at_once_start_each_trial_once(resources: Resources) -> None:
    sweep = new_sweep(resources, max_trials=6, max_parallel=3)
    with ThreadPoolExecutor(max_workers=4) as pool:
        looks = [pool.submit(look, resources, sweep) for _ in range(4)]
    for one in looks:
        one.result()
    assert [trial.number for trial in trials_of(resources, sweep)] == [0, 1, 2]
    with resources.database.read() as connection:
        assert len(connection.execute(select(job_table.c.id)).all()) == 3


def test_the_best_model_wins_and_a_failed_job_does_not_stop_the_rest(resources: Resources) -> None:
    sweep = new_sweep(resources)
    first, second = look(resources, sweep)
    succeed(resources, first, 0.7)
    fail(resources, second)
    _, _, third, fourth = look(resources, sweep)
    assert as_it_is(resources, sweep).best_trial == 0
    succeed(resources, third, 0.4)
    look(resources, sweep)
    assert as_it_is(resources, sweep).status is SweepStatus.RUNNING
    succeed(resources, fourth, 0.6)
    trials = look(resources, sweep)
    assert [trial.value for trial in trials] == [0.7, None, 0.4, 0.6]
    assert trials[1].reason == "it broke"
    ended = as_it_is(resources, sweep)
    assert (ended.status, ended.best_trial, ended.error) == (SweepStatus.SUCCEEDED, 2, None)
    assert ended.finished_at is not None
    standing = standing_of(resources, sweep)
    assert standing.counts[TrialState.SUCCEEDED] == 3
    assert standing.counts[TrialState.FAILED] == 1
    assert standing.best == trials[2]
    assert standing.best_model == job_of(resources, third).output_model


def test_the_direction_is_that_of_the_metric(resources: Resources) -> None:
    sweep = new_sweep(resources, metric="token_accuracy", max_trials=2)
    for trial, accuracy in zip(look(resources, sweep), (0.8, 0.3), strict=True):
        run(resources, trial)
        report = {"metrics": {"token_accuracy": {"tuned": accuracy}}}
        with resources.database.write() as connection:
            jobs.transition(
                connection,
                trial.job_id or "",
                JobStatus.SUCCEEDED,
                message="done",
                report=report,
                finished_at=now(),
            )
    look(resources, sweep)
    assert as_it_is(resources, sweep).best_trial == 0


def test_without_any_model_a_sweep_has_failed(resources: Resources) -> None:
    sweep = new_sweep(resources, max_trials=2)
    for trial in look(resources, sweep):
        fail(resources, trial)
    look(resources, sweep)
    ended = as_it_is(resources, sweep)
    assert ended.status is SweepStatus.FAILED
    assert ended.error is not None
    assert ended.error["code"] == "no_trial_succeeded"
    assert "it broke" in ended.error["message"]


def test_a_job_that_did_not_measure_the_metric_is_no_result(resources: Resources) -> None:
    sweep = new_sweep(resources, max_trials=1)
    (trial,) = look(resources, sweep)
    succeed(resources, trial, None)
    (trial,) = look(resources, sweep)
    assert trial.state is TrialState.FAILED
    assert trial.reason == "its job did not measure loss"


@pytest.mark.parametrize(("best_metric", "value"), [(None, 0.4), ("token_accuracy", 0.6)])
def test_what_no_report_tells_is_known_from_the_epochs(
    resources: Resources, best_metric: str | None, value: float
) -> None:
    """The job publishes its best epoch by the sweep's metric, or by the one that it names."""
    evaluation = {"best_metric": best_metric} if best_metric else {}
    sweep = new_sweep(resources, max_trials=1, job={"evaluation": evaluation})
    (trial,) = look(resources, sweep)
    for epoch, loss in enumerate((0.5, 0.4, 0.6), 1):
        end_epoch(resources, trial, epoch, loss)
    succeed(resources, trial, None)
    (trial,) = look(resources, sweep)
    assert (trial.state, trial.value) == (TrialState.SUCCEEDED, value)


def test_a_job_that_its_user_cancelled_is_replaced(resources: Resources) -> None:
    sweep = new_sweep(resources, max_parallel=1)
    (trial,) = look(resources, sweep)
    with resources.database.write() as connection:
        jobs.transition(connection, trial.job_id or "", JobStatus.CANCELLED, message="no")
    trials = look(resources, sweep)
    assert [one.state for one in trials] == [TrialState.CANCELLED, TrialState.RUNNING]


def test_a_loser_is_given_up_and_told_why(resources: Resources) -> None:
    sweep = new_sweep(resources, max_trials=8, max_parallel=3)
    first, second, third = look(resources, sweep)
    for trial, loss in ((first, 0.5), (second, 0.6)):
        end_epoch(resources, trial, 1, loss)
        succeed(resources, trial, loss - 0.1)
    look(resources, sweep)
    run(resources, third)
    end_epoch(resources, third, 1, 0.9)
    trials = look(resources, sweep)
    pruned = trials[2]
    assert pruned.state is TrialState.PRUNED
    assert pruned.reason == "pruned by median: loss 0.9 at epoch 1, median 0.55"
    job = job_of(resources, third)
    assert job.status is JobStatus.CANCELLED
    assert told(resources, job)[-1] == f"Trial 2 of sweep {sweep.id} was {pruned.reason}"
    # Its place is taken in the same look.
    assert len([one for one in trials if one.state is TrialState.RUNNING]) == 3


def test_a_winner_is_not_given_up_and_an_epoch_is_judged_once(resources: Resources) -> None:
    sweep = new_sweep(resources, max_trials=8, max_parallel=2)
    first, second = look(resources, sweep)
    end_epoch(resources, first, 1, 0.5)
    succeed(resources, first, 0.5)
    end_epoch(resources, second, 1, 0.4)
    trials = look(resources, sweep)
    assert (trials[1].state, trials[1].judged) == (TrialState.RUNNING, 1)
    assert look(resources, sweep) == trials
    # Its best epoch is the best of all, though this one is behind.
    end_epoch(resources, second, 2, 0.9)
    assert look(resources, sweep)[1].state is TrialState.RUNNING


def test_one_that_ended_before_it_was_pruned_counts(resources: Resources) -> None:
    sweep = new_sweep(resources, max_trials=2, max_parallel=2)
    first, second = look(resources, sweep)
    end_epoch(resources, first, 1, 0.5)
    succeed(resources, first, 0.5)
    end_epoch(resources, second, 1, 0.9)
    succeed(resources, second, 0.45)
    trials = look(resources, sweep)
    assert trials[1].state is TrialState.SUCCEEDED
    assert as_it_is(resources, sweep).best_trial == 1


def test_a_sweep_is_cancelled_with_its_jobs(resources: Resources) -> None:
    sweep = new_sweep(resources)
    first, second = look(resources, sweep)
    succeed(resources, first, 0.5)
    first, second, third = look(resources, sweep)
    run(resources, second)
    with resources.database.write() as connection:
        ended = services.cancel(connection, sweep.project_id, sweep.id)
    assert ended.status is SweepStatus.CANCELLED
    assert ended.finished_at is not None
    states = [trial.state for trial in trials_of(resources, sweep)]
    assert states == [TrialState.SUCCEEDED, TrialState.CANCELLED, TrialState.CANCELLED]
    for trial in (second, third):
        job = job_of(resources, trial)
        assert job.status is JobStatus.CANCELLED
        assert told(resources, job)[-1] == f"The sweep {sweep.id} was cancelled"
    assert standing_of(resources, sweep).best_model == job_of(resources, first).output_model
    assert len(look(resources, sweep)) == 3
    with (
        pytest.raises(InvalidTransition, match="cancelled already"),
        resources.database.write() as connection,
    ):
        services.cancel(connection, sweep.project_id, sweep.id)


def test_past_its_budget_a_sweep_starts_nothing_more(resources: Resources) -> None:
    sweep = new_sweep(resources, max_parallel=1, budget=Budget(max_trained_tokens=1_000))
    (first,) = look(resources, sweep)
    succeed(resources, first, 0.5, trained_tokens=600)
    _, second = look(resources, sweep)
    succeed(resources, second, 0.4, trained_tokens=400)
    assert len(look(resources, sweep)) == 2
    ended = as_it_is(resources, sweep)
    assert (ended.status, ended.best_trial) == (SweepStatus.SUCCEEDED, 1)


def test_past_its_time_a_sweep_ends_with_what_runs(resources: Resources) -> None:
    sweep = new_sweep(resources, max_parallel=1, budget=Budget(max_seconds=60))
    (first,) = look(resources, sweep)
    with resources.database.write() as connection:
        connection.execute(update(sweep_table).values(created_at=now() - 61))
    assert len(look(resources, sweep)) == 1
    assert as_it_is(resources, sweep).status is SweepStatus.RUNNING
    succeed(resources, first, 0.5)
    look(resources, sweep)
    assert as_it_is(resources, sweep).status is SweepStatus.SUCCEEDED


def test_what_cannot_become_a_job_is_a_failed_trial(resources: Resources) -> None:
    sweep = new_sweep(resources, max_trials=3, max_parallel=2)
    with resources.database.write() as connection:
        connection.execute(delete(file_table))
    trials = look(resources, sweep)
    assert {(trial.state, trial.job_id) for trial in trials} == {(TrialState.FAILED, None)}
    assert sweep.request["training_file"] in (trials[0].reason or "")
    look(resources, sweep)
    look(resources, sweep)
    assert as_it_is(resources, sweep).status is SweepStatus.FAILED


def test_between_two_trials_the_file_is_kept(resources: Resources) -> None:
    sweep = new_sweep(resources)
    file_id = sweep.request["training_file"]
    with pytest.raises(FileInUse), resources.database.write() as connection:
        files.remove(connection, sweep.project_id, file_id)
    with resources.database.write() as connection:
        services.cancel(connection, sweep.project_id, sweep.id)
        assert files.remove(connection, sweep.project_id, file_id).id == file_id


def test_the_model_that_trials_start_from_is_kept(resources: Resources) -> None:
    name = f"ft:{BASE_MODEL}:acme::before"
    with resources.database.write() as connection:
        project = add_project(connection)
        add_adapter(connection, project, name)
    sweep = new_sweep(resources, job={"model": name}, parameters={RATE: SPACES[RATE]})
    with pytest.raises(ModelInUse), resources.database.write() as connection:
        models.remove(connection, resources.catalogue, project, name)
    with resources.database.write() as connection:
        services.cancel(connection, project, sweep.id)
        assert models.remove(connection, resources.catalogue, project, name) is not None


def test_a_round_of_the_sweeper_takes_a_trial_from_a_row_to_the_workers(
    resources: Resources,
) -> None:
    sweep = new_sweep(resources)
    Sweeper(resources).sweep()
    trials = trials_of(resources, sweep)
    assert received(resources) == sorted(str(trial.job_id) for trial in trials)
    for trial in trials:
        job = now_is(resources, job_of(resources, trial))
        assert job.status is JobStatus.QUEUED
        assert job.spec is not None


def test_a_grid_is_tried_whole(resources: Resources) -> None:
    grid = {
        EPOCHS: {"type": "int", "low": 1, "high": 3},
        "tunesmith.training.weight_decay": {"type": "float", "low": 0.0, "high": 0.1, "step": 0.1},
    }
    sweep = new_sweep(resources, parameters=grid, algorithm="grid", max_trials=20, max_parallel=20)
    assert sweep.pruner == "none"
    trials = look(resources, sweep)
    decay_of = "tunesmith.training.weight_decay"
    tried = {(trial.parameters[EPOCHS], trial.parameters[decay_of]) for trial in trials}
    assert tried == {(epochs, decay) for epochs in (1, 2, 3) for decay in (0.0, 0.1)}
    assert len(trials) == 6
    for trial in trials:
        training = job_of(resources, trial).extension["training"]
        assert training == {"weight_decay": trial.parameters[decay_of]}
        succeed(resources, trial, 0.5)
    look(resources, sweep)
    assert as_it_is(resources, sweep).status is SweepStatus.SUCCEEDED


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"records": 40}, "job.validation_file"),
        ({"job": {"evaluation": {"holdout": 0.0}}}, "job.validation_file"),
        ({"job": {"model": "gpt-5"}}, "job.model"),
        ({"job": {"training_file": "file-none"}}, "job.training_file"),
        ({"job": {"task": "text-classification"}}, "job.tunesmith.task"),
        (
            {
                "parameters": {
                    "method.supervised.hyperparameters.batch_size": {
                        "type": "int",
                        "low": 1,
                        "high": 64,
                    }
                }
            },
            "parameters.method.supervised.hyperparameters.batch_size",
        ),
        (
            {"parameters": {"model": {"type": "categorical", "choices": [BASE_MODEL]}}},
            "parameters.model",
        ),
        (
            {
                "parameters": {
                    "tunesmith.training.class_weights": {
                        "type": "categorical",
                        "choices": [None, "balanced"],
                    }
                }
            },
            "parameters.tunesmith.training.class_weights",
        ),
        ({"algorithm": "grid"}, f"parameters.{RATE}"),
        (
            {
                "algorithm": "grid",
                "parameters": {
                    EPOCHS: {"type": "int", "low": 1, "high": 50},
                    "tunesmith.adapter.r": {"type": "int", "low": 1, "high": 256},
                },
            },
            "parameters",
        ),
    ],
)
def test_what_no_trial_could_be_is_refused_by_its_field(
    resources: Resources, changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        new_sweep(resources, **changes)
    assert refused.value.param == param


def test_another_projects_sweep_looks_like_none(resources: Resources) -> None:
    sweep = new_sweep(resources)
    with resources.database.write() as connection:
        other = add_project(connection, "other")
        with pytest.raises(NotFound) as foreign:
            sweeps.get(connection, other, sweep.id)
        with pytest.raises(NotFound) as absent:
            sweeps.get(connection, other, "ftsweep-none")
    assert foreign.value.message.replace(sweep.id, "ftsweep-none") == absent.value.message


def test_without_its_tables_a_sweeps_jobs_go_on(empty_database: Database, tmp_path: Path) -> None:
    upgrade(empty_database)
    with opened(empty_database, f"filesystem://{tmp_path}/broker", tmp_path) as resources:
        sweep = new_sweep(resources)
        first, _ = look(resources, sweep)
        before = job_of(resources, first)
        downgrade(empty_database, "0003")
        upgrade(empty_database)
        after = job_of(resources, first)
        extension = {key: value for key, value in before.extension.items() if key != "sweep"}
        assert after == replace(before, extension=extension)
        assert new_sweep(resources).status is SweepStatus.RUNNING
