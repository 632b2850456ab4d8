"""What another project owns looks, on every route, exactly like what does not exist.

A route that is in neither of the two tables below fails the first test: whoever adds one says
here how it is kept apart.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from openai import OpenAI

from app.db.repositories import ensembles, traffic
from app.db.repositories.ensembles import Member, NewEnsemble
from app.domain.traffic import Tally, Version
from app.main import create_app
from app.settings import load_settings
from tests.support.batching import as_input, chat_line
from tests.support.exports import add_model, create_export
from tests.support.factories import BASE_MODEL, add_adapter, add_alias, dataset
from tests.support.service import Service


@dataclass(frozen=True)
class Owned:
    """Ids of things, there or not."""

    file: str
    job: str
    model: str
    sweep: str
    ensemble: str
    batch: str
    alias: str
    export: str


ABSENT = Owned(
    file="file-" + "0" * 24,
    job="ftjob-" + "0" * 24,
    model=f"ft:{BASE_MODEL}:acme::" + "0" * 12,
    sweep="ftsweep-" + "0" * 24,
    ensemble="ens-" + "0" * 24,
    batch="batch_" + "0" * 24,
    alias="alias-" + "0" * 24,
    export="export-" + "0" * 24,
)

Request = Callable[[httpx.Client, Owned], httpx.Response]


def body(**fields: Any) -> dict[str, Any]:
    return {"json": fields}


def chat(model: str, **more: Any) -> dict[str, Any]:
    return body(model=model, messages=[{"role": "user", "content": "hello"}], **more)


JOBS = "/v1/fine_tuning/jobs"
SWEEPS = "/v1/fine_tuning/sweeps"


def sweep_of(file: str, model: str = BASE_MODEL) -> dict[str, Any]:
    ranks = {"type": "int", "low": 4, "high": 8}
    return body(
        job={"model": model, "training_file": file}, parameters={"tunesmith.adapter.r": ranks}
    )


def batch_of(file: str) -> dict[str, Any]:
    return body(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h")


def alias_of(model: str, **more: Any) -> dict[str, Any]:
    return body(targets=[{"model": model, "weight": 1}], **more)


def judge(model: str) -> dict[str, Any]:
    """Return a grader that asks a model."""
    asked = [{"role": "user", "content": "{{sample.output_text}}"}]
    return {"type": "score_model", "name": "judge", "model": model, "input": asked}


# Routes that name something: the same answer for what is another's and what is not there.
NAMING: dict[str, list[Request]] = {
    "GET /v1/files/{file_id}": [lambda http, it: http.get(f"/v1/files/{it.file}")],
    "GET /v1/files/{file_id}/content": [lambda http, it: http.get(f"/v1/files/{it.file}/content")],
    "DELETE /v1/files/{file_id}": [lambda http, it: http.delete(f"/v1/files/{it.file}")],
    f"POST {JOBS}": [
        lambda http, it: http.post(JOBS, **body(model=BASE_MODEL, training_file=it.file)),
        lambda http, it: http.post(JOBS, **body(model=it.model, training_file=it.file)),
    ],
    f"GET {JOBS}/{{fine_tuning_job_id}}": [lambda http, it: http.get(f"{JOBS}/{it.job}")],
    f"POST {JOBS}/{{fine_tuning_job_id}}/cancel": [
        lambda http, it: http.post(f"{JOBS}/{it.job}/cancel")
    ],
    f"POST {JOBS}/{{fine_tuning_job_id}}/pause": [
        lambda http, it: http.post(f"{JOBS}/{it.job}/pause")
    ],
    f"POST {JOBS}/{{fine_tuning_job_id}}/resume": [
        lambda http, it: http.post(f"{JOBS}/{it.job}/resume")
    ],
    f"GET {JOBS}/{{fine_tuning_job_id}}/events": [
        lambda http, it: http.get(f"{JOBS}/{it.job}/events")
    ],
    f"GET {JOBS}/{{fine_tuning_job_id}}/checkpoints": [
        lambda http, it: http.get(f"{JOBS}/{it.job}/checkpoints")
    ],
    f"POST {SWEEPS}": [
        lambda http, it: http.post(SWEEPS, **sweep_of(it.file)),
        lambda http, it: http.post(SWEEPS, **sweep_of(it.file, it.model)),
    ],
    f"GET {SWEEPS}/{{sweep_id}}": [lambda http, it: http.get(f"{SWEEPS}/{it.sweep}")],
    f"POST {SWEEPS}/{{sweep_id}}/cancel": [
        lambda http, it: http.post(f"{SWEEPS}/{it.sweep}/cancel")
    ],
    f"GET {SWEEPS}/{{sweep_id}}/trials": [lambda http, it: http.get(f"{SWEEPS}/{it.sweep}/trials")],
    "GET /v1/models/{model:path}": [lambda http, it: http.get(f"/v1/models/{it.model}")],
    "DELETE /v1/models/{model:path}": [lambda http, it: http.delete(f"/v1/models/{it.model}")],
    "POST /v1/chat/completions": [
        lambda http, it: http.post("/v1/chat/completions", **chat(it.model)),
        lambda http, it: http.post("/v1/chat/completions", **chat(it.model, stream=True)),
        lambda http, it: http.post("/v1/chat/completions", **chat(it.alias)),
    ],
    "POST /v1/completions": [
        lambda http, it: http.post("/v1/completions", **body(model=it.model, prompt="hello"))
    ],
    "POST /v1/responses": [
        lambda http, it: http.post("/v1/responses", **body(model=it.model, input="hello")),
        lambda http, it: http.post(
            "/v1/responses", **body(model=it.model, input="hello", stream=True)
        ),
    ],
    "POST /v1/predictions": [
        lambda http, it: http.post("/v1/predictions", **body(model=it.model, inputs="hello"))
    ],
    "POST /v1/score": [
        lambda http, it: http.post("/v1/score", **body(model=it.model, text_1="a", text_2="b"))
    ],
    "POST /v1/embeddings": [
        lambda http, it: http.post("/v1/embeddings", **body(model=it.model, input="hello"))
    ],
    "POST /v1/explanations": [
        lambda http, it: http.post("/v1/explanations", **body(model=it.model, inputs="hello"))
    ],
    "POST /v1/fine_tuning/alpha/graders/run": [
        lambda http, it: http.post(
            "/v1/fine_tuning/alpha/graders/run",
            **body(grader=judge(it.model), model_sample="hello", item={}),
        )
    ],
    "POST /v1/fine_tuning/alpha/graders/validate": [
        lambda http, it: http.post(
            "/v1/fine_tuning/alpha/graders/validate", **body(grader=judge(it.model))
        )
    ],
    "POST /v1/ensembles": [
        lambda http, it: http.post("/v1/ensembles", **body(models=[it.model, it.model + "x"]))
    ],
    "GET /v1/ensembles/{ensemble_id}": [lambda http, it: http.get(f"/v1/ensembles/{it.ensemble}")],
    "DELETE /v1/ensembles/{ensemble_id}": [
        lambda http, it: http.delete(f"/v1/ensembles/{it.ensemble}")
    ],
    "POST /v1/batches": [lambda http, it: http.post("/v1/batches", **batch_of(it.file))],
    "GET /v1/batches/{batch_id}": [lambda http, it: http.get(f"/v1/batches/{it.batch}")],
    "POST /v1/batches/{batch_id}/cancel": [
        lambda http, it: http.post(f"/v1/batches/{it.batch}/cancel")
    ],
    "POST /v1/aliases": [
        lambda http, it: http.post("/v1/aliases", **alias_of(it.model, name="mine")),
    ],
    "GET /v1/aliases/{name}": [lambda http, it: http.get(f"/v1/aliases/{it.alias}")],
    "POST /v1/aliases/{name}": [
        lambda http, it: http.post(f"/v1/aliases/{it.alias}", **alias_of(BASE_MODEL)),
    ],
    "POST /v1/aliases/{name}/rollback": [
        lambda http, it: http.post(f"/v1/aliases/{it.alias}/rollback")
    ],
    "GET /v1/aliases/{name}/revisions": [
        lambda http, it: http.get(f"/v1/aliases/{it.alias}/revisions")
    ],
    "DELETE /v1/aliases/{name}": [lambda http, it: http.delete(f"/v1/aliases/{it.alias}")],
    "POST /v1/exports": [
        lambda http, it: http.post("/v1/exports", **body(model=it.model, format="adapter"))
    ],
    "GET /v1/exports/{export_id}": [lambda http, it: http.get(f"/v1/exports/{it.export}")],
    "POST /v1/exports/{export_id}/cancel": [
        lambda http, it: http.post(f"/v1/exports/{it.export}/cancel")
    ],
    "GET /v1/aliases/{name}/feedback": [
        lambda http, it: http.get(f"/v1/aliases/{it.alias}/feedback")
    ],
    "GET /v1/aliases/{name}/shadow_samples": [
        lambda http, it: http.get(f"/v1/aliases/{it.alias}/shadow_samples")
    ],
    "GET /v1/aliases/{name}/report": [lambda http, it: http.get(f"/v1/aliases/{it.alias}/report")],
    "POST /v1/feedback": [
        # The alias' name is the id of its answer, too.
        lambda http, it: http.post("/v1/feedback", **body(completion_id=it.alias, score=1)),
    ],
    # As cursors of lists.
    "GET /v1/batches": [lambda http, it: http.get("/v1/batches", params={"after": it.batch})],
    "GET /v1/aliases": [lambda http, it: http.get("/v1/aliases", params={"after": it.alias})],
    "GET /v1/exports": [lambda http, it: http.get("/v1/exports", params={"after": it.export})],
    "GET /v1/ensembles": [
        lambda http, it: http.get("/v1/ensembles", params={"after": it.ensemble})
    ],
    "GET /v1/files": [lambda http, it: http.get("/v1/files", params={"after": it.file})],
    f"GET {JOBS}": [lambda http, it: http.get(JOBS, params={"after": it.job})],
    f"GET {SWEEPS}": [lambda http, it: http.get(SWEEPS, params={"after": it.sweep})],
}

# Routes that name nothing: their lists are looked at in a test of their own.
NAMELESS = {
    "POST /v1/files",
    "GET /v1/models",
    "GET /v1/usage",
    "GET /healthz",
    "GET /metrics",
    "GET /readyz",
    "GET /version",
    "GET /openapi.json",
    "GET /docs",
    "GET /docs/oauth2-redirect",
    "GET /redoc",
}


@pytest.fixture
def foreign(api: Service) -> Owned:
    """What another project owns: of each kind one."""
    key = api.new_key(project=secrets.token_hex(4))
    with api.http(key) as http:
        file = http.post(
            "/v1/files",
            data={"purpose": "fine-tune"},
            files={"file": ("theirs.jsonl", dataset(60))},
        ).json()["id"]
        job = http.post(JOBS, json={"model": BASE_MODEL, "training_file": file}).json()["id"]
        sweep = http.post(SWEEPS, **sweep_of(file)).json()["id"]
        requests = http.post(
            "/v1/batches",
            **batch_of(
                http.post(
                    "/v1/files",
                    data={"purpose": "batch"},
                    files={"file": ("theirs.jsonl", as_input([chat_line("a", "hello")]))},
                ).json()["id"]
            ),
        )
    model = f"ft:{BASE_MODEL}:acme::{secrets.token_hex(6)}"
    project = api.project_of(key)
    with api.database() as database, database.write() as connection:
        add_adapter(connection, project, model)
        ensemble = ensembles.add(
            connection,
            NewEnsemble(
                project_id=project,
                model=f"{model}-joined",
                method="mean_probabilities",
                task="text-classification",
                metadata=None,
                members=[Member(model, 1.0)],
            ),
        )
        # Its name reads like an id, so that it is a cursor, too.
        alias = add_alias(connection, project, [model])
        version = Version(project, model, alias.id, 1)
        traffic.add(connection, {version: Tally(requests=1)})
        traffic.add_answers(connection, [(alias.name, version)])
        exported = add_model(connection, project)
    with api.http(key) as http:
        export = create_export(http, exported.name, "adapter")
    batch = requests.json()["id"]
    return Owned(file, job, model, sweep, ensemble.id, batch, alias.name, export["id"])


def test_every_route_is_kept_apart_here() -> None:
    routes = {
        f"{method} {route.path}"
        for route in iter_route_contexts(create_app(load_settings({})).routes)
        for method in set(route.methods or ()) - {"HEAD"}
    }
    assert routes == NAMING.keys() | NAMELESS


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(ask, id=f"{route}-{number}")
        for route, requests in NAMING.items()
        for number, ask in enumerate(requests)
    ],
)
def test_what_is_anothers_looks_like_what_is_not_there(
    http: httpx.Client, foreign: Owned, ask: Request
) -> None:
    theirs, none = ask(http, foreign), ask(http, ABSENT)
    assert theirs.status_code == none.status_code
    assert theirs.status_code in (400, 404)
    content = theirs.content
    for name in ("file", "job", "model", "sweep", "ensemble", "batch", "alias", "export"):
        content = content.replace(getattr(foreign, name).encode(), getattr(ABSENT, name).encode())
    assert content == none.content
    assert _without_changing(theirs.headers) == _without_changing(none.headers)


def test_a_validation_file_of_another_looks_like_none(
    client: OpenAI, http: httpx.Client, foreign: Owned
) -> None:
    mine = client.files.create(file=("mine.jsonl", dataset()), purpose="fine-tune").id
    answers = [
        http.post(JOBS, **body(model=BASE_MODEL, training_file=mine, validation_file=file))
        for file in (foreign.file, ABSENT.file)
    ]
    assert answers[0].content.replace(foreign.file.encode(), ABSENT.file.encode()) == (
        answers[1].content
    )
    assert answers[0].json()["error"]["param"] == "validation_file"


def test_no_list_shows_what_is_anothers(client: OpenAI, http: httpx.Client, foreign: Owned) -> None:
    for path in (SWEEPS, "/v1/ensembles", "/v1/aliases", "/v1/exports", "/v1/usage"):
        assert http.get(path).json()["data"] == []
    assert list(client.files.list()) == []
    assert list(client.fine_tuning.jobs.list()) == []
    assert list(client.batches.list()) == []
    assert {model.owned_by for model in client.models.list()} == {"operator"}


def test_whoever_owns_it_finds_it_still(api: Service, foreign: Owned, http: httpx.Client) -> None:
    """The negative control: the ids are good, and nothing above changed what they name."""
    for requests in NAMING.values():
        for ask in requests:
            ask(http, foreign)
    with api.database() as database, database.read() as connection:
        rows = connection.exec_driver_sql(
            f"SELECT (SELECT count(*) FROM files WHERE id = '{foreign.file}'),"
            f" (SELECT count(*) FROM adapters WHERE name = '{foreign.model}'),"
            f" (SELECT count(*) FROM jobs WHERE id = '{foreign.job}' AND status <> 'cancelled'),"
            f" (SELECT count(*) FROM sweeps WHERE id = '{foreign.sweep}' AND status = 'running'),"
            f" (SELECT count(*) FROM batches WHERE id = '{foreign.batch}'"
            " AND cancelling_at IS NULL),"
            f" (SELECT count(*) FROM aliases WHERE name = '{foreign.alias}' AND revision = 1),"
            f" (SELECT count(*) FROM exports WHERE id = '{foreign.export}' AND status = 'queued')"
        ).one()
    assert tuple(rows) == (1,) * 7


def _without_changing(headers: httpx.Headers) -> dict[str, str]:
    changing = {"date", "x-request-id", "openai-processing-ms", "content-length"}
    return {name: value for name, value in headers.items() if name not in changing}
