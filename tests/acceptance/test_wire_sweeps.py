"""Sweeps over the wire; no worker is there to run their jobs."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.support.factories import BASE_MODEL, dataset
from tests.support.polling import eventually
from tests.support.wire import error_of

SWEEPS = "/v1/fine_tuning/sweeps"
JOBS = "/v1/fine_tuning/jobs"
HYPERPARAMETERS = "method.supervised.hyperparameters"
RATE = f"{HYPERPARAMETERS}.learning_rate_multiplier"
RANK = "tunesmith.adapter.r"
DECAY = "tunesmith.training.weight_decay"
PARAMETERS: dict[str, Any] = {
    RATE: {"type": "float", "low": 0.1, "high": 10.0, "log": True},
    RANK: {"type": "int", "low": 4, "high": 16, "step": 4},
    DECAY: {"type": "categorical", "choices": [0.0, 0.1]},
}

Create = Callable[..., httpx.Response]


@pytest.fixture
def training_file(client: OpenAI) -> str:
    return client.files.create(file=("train.jsonl", dataset(60)), purpose="fine-tune").id


@pytest.fixture
def create(http: httpx.Client, training_file: str) -> Create:
    def create(job: dict[str, Any] | None = None, **more: Any) -> httpx.Response:
        body: dict[str, Any] = {
            "job": {"model": BASE_MODEL, "training_file": training_file} | (job or {}),
            "parameters": PARAMETERS,
            "max_trials": 4,
            "max_parallel": 2,
        }
        return http.post(SWEEPS, json=body | more)

    return create


def trials_of(http: httpx.Client, sweep: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Wait until a sweep has started so many trials, and return them, the first one first."""

    def look() -> list[dict[str, Any]] | None:
        found = http.get(f"{SWEEPS}/{sweep['id']}/trials").json()["data"]
        return found[::-1] if len(found) >= count else None

    found = eventually(look, what=f"{count} trials were started")
    assert found is not None
    return found


def test_a_sweep_tells_what_was_asked_for(create: Create, training_file: str) -> None:
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
    answer = create(
        {"method": method},
        metric="token_accuracy",
        algorithm="random",
        seed=11,
        suffix="desk",
        metadata={"team": "support"},
        budget={"max_trained_tokens": 1_000_000},
    )
    assert answer.status_code == 200, answer.text
    sweep = answer.json()
    assert sweep.pop("id").startswith("ftsweep-")
    assert sweep.pop("created_at") > 0
    assert {**sweep["parameters"][RATE]} == {**PARAMETERS[RATE], "step": None}
    assert sweep.pop("parameters").keys() == PARAMETERS.keys()
    assert sweep == {
        "object": "fine_tuning.sweep",
        "finished_at": None,
        "status": "running",
        "error": None,
        "job": {"model": BASE_MODEL, "training_file": training_file, "method": method},
        "metric": "token_accuracy",
        "direction": "maximize",
        "algorithm": "random",
        "pruner": "median",
        "max_trials": 4,
        "max_parallel": 2,
        "budget": {"max_trained_tokens": 1_000_000, "max_seconds": None},
        "seed": 11,
        "suffix": "desk",
        "metadata": {"team": "support"},
        "trials": {"running": 0, "succeeded": 0, "pruned": 0, "failed": 0, "cancelled": 0},
        "best_trial": None,
        "best_job": None,
        "best_model": None,
    }


def test_with_the_least_it_searches_by_tpe_for_the_tasks_main_metric(create: Create) -> None:
    sweep = create().json()
    assert (sweep["algorithm"], sweep["pruner"]) == ("tpe", "median")
    assert (sweep["metric"], sweep["direction"]) == ("loss", "minimize")
    assert create(algorithm="successive_halving").json()["pruner"] == "successive_halving"


def test_its_trials_are_jobs_that_the_jobs_routes_know(
    create: Create, http: httpx.Client, client: OpenAI
) -> None:
    sweep = create(suffix="desk", seed=11).json()
    trials = trials_of(http, sweep, 2)
    listed = {job.id: job for job in client.fine_tuning.jobs.list()}
    assert listed.keys() == {trial["fine_tuning_job_id"] for trial in trials}
    for number, trial in enumerate(trials):
        assert trial["object"] == "fine_tuning.sweep.trial"
        assert (trial["number"], trial["sweep_id"]) == (number, sweep["id"])
        assert (trial["state"], trial["value"], trial["reason"]) == ("running", None, None)
        assert trial["parameters"].keys() == PARAMETERS.keys()
        job = http.get(f"{JOBS}/{trial['fine_tuning_job_id']}").json()
        extension = job["tunesmith"]
        assert extension["sweep"] == sweep["id"]
        assert extension["adapter"]["r"] == trial["parameters"][RANK]
        assert extension["training"]["weight_decay"] == trial["parameters"][DECAY]
        rate = job["hyperparameters"]["learning_rate_multiplier"]
        assert rate == trial["parameters"][RATE]
        assert job["seed"] == 11
    now = http.get(f"{SWEEPS}/{sweep['id']}").json()
    assert now["trials"]["running"] == 2
    plain = client.fine_tuning.jobs.create(
        model=BASE_MODEL, training_file=sweep["job"]["training_file"]
    )
    assert plain.to_dict()["tunesmith"]["sweep"] is None


def test_trials_and_sweeps_are_listed_in_pages(create: Create, http: httpx.Client) -> None:
    made = [create().json()["id"] for _ in range(3)]
    page = http.get(SWEEPS, params={"limit": 2}).json()
    assert page["object"] == "list"
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (made[:0:-1], True)
    rest = http.get(SWEEPS, params={"limit": 2, "after": made[1]}).json()
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (made[:1], False)
    trials = trials_of(http, {"id": made[0]}, 2)
    newest = http.get(f"{SWEEPS}/{made[0]}/trials", params={"limit": 1}).json()
    assert ([one["number"] for one in newest["data"]], newest["has_more"]) == ([1], True)
    assert newest["first_id"] == newest["last_id"] == trials[1]["id"]
    older = http.get(f"{SWEEPS}/{made[0]}/trials", params={"after": trials[1]["id"]}).json()
    assert ([one["number"] for one in older["data"]], older["has_more"]) == ([0], False)


def test_a_sweep_is_cancelled_with_its_jobs_and_only_once(
    create: Create, http: httpx.Client
) -> None:
    sweep = create().json()
    trials = trials_of(http, sweep, 2)
    cancelled = http.post(f"{SWEEPS}/{sweep['id']}/cancel").json()
    assert cancelled["status"] == "cancelled"
    assert cancelled["finished_at"] is not None
    assert cancelled["trials"]["cancelled"] == 2
    for trial in trials:
        job = http.get(f"{JOBS}/{trial['fine_tuning_job_id']}").json()
        assert job["status"] == "cancelled"
    refused = error_of(http.post(f"{SWEEPS}/{sweep['id']}/cancel"), 400)
    assert "cancelled already" in refused["message"]


def test_a_repeated_post_makes_one_sweep(http: httpx.Client, training_file: str) -> None:
    body = {
        "job": {"model": BASE_MODEL, "training_file": training_file},
        "parameters": PARAMETERS,
    }
    answers = [http.post(SWEEPS, json=body, headers={"Idempotency-Key": "one"}) for _ in range(2)]
    assert answers[0].content == answers[1].content
    assert answers[1].headers["idempotent-replayed"] == "true"
    assert len(http.get(SWEEPS).json()["data"]) == 1


@pytest.mark.parametrize(
    ("path", "space", "told"),
    [
        (RATE, {"type": "float", "low": 0.1, "high": 2000.0}, "less than or equal to 1000"),
        (RATE, {"type": "float", "low": 0.0, "high": 1.0}, "greater than 0"),
        (f"{HYPERPARAMETERS}.n_epochs", {"type": "float", "low": 1.0, "high": 3.5}, "integer"),
        (f"{HYPERPARAMETERS}.momentum", {"type": "int", "low": 1, "high": 2}, "Unknown field"),
        ("method.magic.hyperparameters.x", {"type": "int", "low": 1, "high": 2}, "Unknown field"),
        ("nonsense", {"type": "int", "low": 1, "high": 2}, "Unknown field"),
        ("suffix", {"type": "categorical", "choices": ["a", "b"]}, "cannot be searched"),
        ("tunesmith.evaluation.holdout", {"type": "float", "low": 0.1, "high": 0.2}, "searched"),
        (RANK, {"type": "categorical", "choices": [4, "many"]}, "integer"),
        ("tunesmith.adapter.type", {"type": "categorical", "choices": ["lora", "x"]}, "expected"),
        ("tunesmith.training.scheduler", {"type": "categorical", "choices": ["odd"]}, "linear"),
        (f"{HYPERPARAMETERS}.batch_size", {"type": "int", "low": 1, "high": 64}, "60 records"),
        (RATE, {"type": "float", "low": 2.0, "high": 1.0}, "not above"),
        (RATE, {"type": "float", "low": 2.0}, "Missing"),
    ],
)
def test_a_parameter_that_no_job_would_take_is_refused_by_its_path(
    create: Create, path: str, space: dict[str, Any], told: str
) -> None:
    error = error_of(create(parameters={path: space}), 400)
    assert told in error["message"]
    assert error["param"].startswith(f"parameters.{path}")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"job": {"model": "gpt-5"}}, "job.model"),
        ({"job": {"training_file": "file-none"}}, "job.training_file"),
        ({"job": {"method": {"type": "magic"}}}, "job.method.type"),
        ({"job": {"tunesmith": {"evaluation": {"holdout": 0.0}}}}, "job.validation_file"),
        ({"job": {"n_epochs": 3}}, "job.n_epochs"),
        ({"metric": "beauty"}, "metric"),
        ({"algorithm": "annealing"}, "algorithm"),
        ({"algorithm": "grid"}, f"parameters.{RATE}"),
        ({"max_trials": 0}, "max_trials"),
        ({"max_parallel": 65}, "max_parallel"),
        ({"parameters": {}}, "parameters"),
        ({"budget": {"max_money": 1}}, "budget.max_money"),
        ({"winner": True}, "winner"),
    ],
)
def test_what_is_wrong_elsewhere_is_refused_by_its_field(
    create: Create, changes: dict[str, Any], param: str
) -> None:
    error = error_of(create(**changes), 400)
    assert error["param"] == param


def test_parameters_inside_each_other_and_a_second_pruner_are_refused(create: Create) -> None:
    whole = {"type": "categorical", "choices": [{"type": "lora", "r": 4}]}
    parameters = {"tunesmith.adapter": whole, RANK: PARAMETERS[RANK]}
    assert "holds" in error_of(create(parameters=parameters), 400)["message"]
    refused = create(algorithm="successive_halving", pruner="median")
    assert "successive_halving" in error_of(refused, 400)["message"]


def test_whole_adapters_are_searched(create: Create, http: httpx.Client) -> None:
    choices = [{"type": "lora", "r": 4, "alpha": 8}, {"type": "ia3"}]
    adapters = {"type": "categorical", "choices": choices}
    sweep = create(parameters={"tunesmith.adapter": adapters}, algorithm="grid").json()
    trials = trials_of(http, sweep, 2)
    kinds = set()
    for trial in trials:
        job = http.get(f"{JOBS}/{trial['fine_tuning_job_id']}").json()
        kinds.add(job["tunesmith"]["adapter"]["type"])
    assert kinds == {"lora", "ia3"}
