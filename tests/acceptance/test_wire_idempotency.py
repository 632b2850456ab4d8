"""A POST that is sent twice takes effect once: over the wire, and through OpenAI's own client."""

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import httpx2
import pytest
from openai import DefaultHttpxClient, OpenAI
from sqlalchemy import Row, select

from app.db.repositories.idempotency import LOCK_SECONDS
from app.db.tables import idempotency_keys
from tests.support.factories import BASE_MODEL, dataset
from tests.support.fake_engine import ANSWER, DIE, REFUSE, SLOW, FakeEngine
from tests.support.polling import eventually
from tests.support.service import Service
from tests.support.wire import error_of

JOBS = "/v1/fine_tuning/jobs"
CHAT = "/v1/chat/completions"
REPLAYED = "idempotent-replayed"


@pytest.fixture(autouse=True)
def quiet_engine(fake_engine: FakeEngine) -> None:
    fake_engine.disconnected.clear()
    fake_engine.requests.clear()


@pytest.fixture
def name() -> dict[str, str]:
    """A new key, as a header."""
    return {"Idempotency-Key": f"order-{secrets.token_hex(4)}"}


@pytest.fixture
def training_file(http: httpx.Client) -> str:
    return str(upload(http).json()["id"])


@pytest.fixture
def asked(training_file: str) -> dict[str, Any]:
    return {"model": BASE_MODEL, "training_file": training_file}


def upload(
    http: httpx.Client,
    headers: dict[str, str] | None = None,
    *,
    content: bytes | None = None,
    name: str = "train.jsonl",
    boundary: str | None = None,
    **form: str,
) -> httpx.Response:
    headers = dict(headers or {})
    if boundary is not None:
        headers["content-type"] = f"multipart/form-data; boundary={boundary}"
    return http.post(
        "/v1/files",
        data={"purpose": "fine-tune"} | form,
        files={"file": (name, dataset() if content is None else content)},
        headers=headers,
    )


def hello(prompt: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": BASE_MODEL, "messages": [{"role": "user", "content": prompt}]} | more


def assert_replays(first: httpx.Response, second: httpx.Response) -> None:
    assert (first.status_code, second.status_code) == (200, 200), second.text
    assert (first.headers.get(REPLAYED), second.headers.get(REPLAYED)) == (None, "true")
    assert second.content == first.content
    assert second.headers["content-type"] == first.headers["content-type"]
    assert second.headers["x-request-id"] != first.headers["x-request-id"]


def ids(http: httpx.Client, path: str) -> list[str]:
    return [one["id"] for one in http.get(path).json()["data"]]


def keys_of(api: Service, key: str) -> list[Row[Any]]:
    """Return the rows of what a project's requests were answered."""
    project = api.project_of(key)
    with api.database() as database, database.read() as connection:
        return list(
            connection.execute(
                select(idempotency_keys).where(idempotency_keys.c.project_id == project)
            )
        )


def stored_content(api: Service) -> int:
    return len(list((api.data_dir / "storage").glob("files/*")))


def test_a_job_that_is_created_twice_is_one_job(
    http: httpx.Client, asked: dict[str, Any], name: dict[str, str]
) -> None:
    first = http.post(JOBS, json=asked, headers=name)
    assert_replays(first, http.post(JOBS, json=asked, headers=name))
    assert ids(http, JOBS) == [first.json()["id"]]


def test_an_answer_is_the_first_one_though_the_job_went_on(
    http: httpx.Client, asked: dict[str, Any], name: dict[str, str]
) -> None:
    first = http.post(JOBS, json=asked, headers=name)
    assert http.post(f"{JOBS}/{first.json()['id']}/cancel").json()["status"] == "cancelled"
    second = http.post(JOBS, json=asked, headers=name)
    assert_replays(first, second)
    assert second.json()["status"] == "validating_files"


@pytest.mark.parametrize("move", ["cancel", "pause", "resume"])
def test_a_move_that_is_made_twice_is_one_move(
    http: httpx.Client, asked: dict[str, Any], name: dict[str, str], move: str
) -> None:
    path = f"{JOBS}/{http.post(JOBS, json=asked).json()['id']}"
    if move == "resume":
        assert http.post(f"{path}/pause").status_code == 200
    first = http.post(f"{path}/{move}", headers=name)
    assert_replays(first, http.post(f"{path}/{move}", headers=name))
    # Without the key the second one is a mistake.
    assert error_of(http.post(f"{path}/{move}"), 400)["code"] == "invalid_job_state"


def test_an_upload_that_is_sent_twice_is_one_file(
    api: Service, http: httpx.Client, name: dict[str, str]
) -> None:
    before = stored_content(api)
    first = upload(http, name, boundary="one")
    second = upload(http, name, boundary="another")
    assert first.request.headers["content-type"] != second.request.headers["content-type"]
    assert_replays(first, second)
    assert ids(http, "/v1/files") == [first.json()["id"]]
    assert stored_content(api) == before + 1


@pytest.mark.parametrize(
    "change",
    [
        {"content": dataset(4)},
        {"name": "other.jsonl"},
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"},
    ],
    ids=["content", "name", "expires_after"],
)
def test_another_upload_under_the_same_key_is_refused(
    api: Service, http: httpx.Client, name: dict[str, str], change: dict[str, Any]
) -> None:
    upload(http, name)
    before = stored_content(api)
    error = error_of(upload(http, name, **change), 422)
    assert (error["code"], error["type"]) == ("idempotency_key_reused", "invalid_request_error")
    assert len(ids(http, "/v1/files")) == 1
    assert stored_content(api) == before


def test_another_job_under_the_same_key_is_refused(
    http: httpx.Client, asked: dict[str, Any], name: dict[str, str]
) -> None:
    assert http.post(JOBS, json=asked, headers=name).status_code == 200
    error = error_of(http.post(JOBS, json=asked | {"seed": 1}, headers=name), 422)
    assert error["code"] == "idempotency_key_reused"
    assert len(ids(http, JOBS)) == 1


def test_a_key_is_ones_own_and_of_one_path(
    api: Service, http: httpx.Client, asked: dict[str, Any], name: dict[str, str]
) -> None:
    first = upload(http, name)
    assert REPLAYED not in http.post(JOBS, json=asked, headers=name).headers
    with api.http(api.new_key(project=secrets.token_hex(4))) as other:
        theirs = upload(other, name, content=dataset(4))
        assert theirs.status_code == 200
        assert REPLAYED not in theirs.headers
        assert ids(other, "/v1/files") == [theirs.json()["id"]]
    assert_replays(first, upload(http, name))


@pytest.mark.parametrize(
    "value",
    [b"", b"a b", b"a\tb", "é".encode(), b"x" * 256, b"sdk " + b"a" * 64],
    ids=["empty", "space", "tab", "not_ascii", "long", "like_ours"],
)
@pytest.mark.parametrize("path", ["/v1/files", JOBS, f"{JOBS}/ftjob-x/pause", CHAT])
def test_a_key_that_is_none_is_refused_by_name(
    http: httpx.Client, fake_engine: FakeEngine, path: str, value: bytes
) -> None:
    bodies: dict[str, Any] = {
        "/v1/files": {"data": {"purpose": "fine-tune"}, "files": {"file": ("t", dataset())}},
        JOBS: {"json": {"model": BASE_MODEL, "training_file": "file-x"}},
        CHAT: {"json": hello()},
    }
    answer = http.post(path, headers={"Idempotency-Key": value}, **bodies.get(path, {}))
    error = error_of(answer, 400)
    assert error["param"] == "Idempotency-Key"
    assert "Idempotency-Key" in error["message"]
    assert ids(http, "/v1/files") == []
    assert fake_engine.requests == []


@pytest.mark.parametrize("value", ["x", "x" * 255, "!~", '"8e03978e-40d5-43dd-bc93-6894a57f9324"'])
def test_any_visible_characters_are_a_key(http: httpx.Client, value: str) -> None:
    headers = {"Idempotency-Key": value}
    assert_replays(upload(http, headers), upload(http, headers))


def test_what_was_refused_may_be_corrected_under_its_key(
    api: Service, http: httpx.Client, key: str, asked: dict[str, Any], name: dict[str, str]
) -> None:
    for mistake in ({"seed": -1}, {"training_file": "file-none"}):
        answer = http.post(JOBS, json=asked | mistake, headers=name)
        assert error_of(answer, 400)["param"] in mistake
        assert keys_of(api, key) == []
    assert error_of(upload(http, name, content=b"no dataset"), 400)["param"] == "file"
    assert REPLAYED not in http.post(JOBS, json=asked, headers=name).headers
    assert REPLAYED not in upload(http, name).headers


def test_a_job_that_is_not_there_is_not_found_under_a_key(
    http: httpx.Client, name: dict[str, str]
) -> None:
    # As long as no index can hold, in letters that cannot be compressed.
    for job_id in ("ftjob-none", secrets.token_hex(4_000)):
        for _ in range(2):
            assert error_of(http.post(f"{JOBS}/{job_id}/cancel", headers=name), 404)


@contextmanager
def busy(http: httpx.Client, headers: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Have a request in flight, and return its body; it does not end by itself."""
    body = hello(SLOW, stream=True)
    with http.stream("POST", CHAT, json=body, headers=headers) as answer:
        lines = answer.iter_lines()  # Without this name, it would be closed at once.
        assert next(lines)
        yield body


def test_while_the_first_is_answered_the_second_is_told_to_come_again(
    api: Service, http: httpx.Client, key: str, name: dict[str, str]
) -> None:
    with api.http(key) as another, busy(another, name) as body:
        answer = http.post(CHAT, json=body, headers=name)
        assert error_of(answer, 409)["code"] == "idempotency_key_in_use"
        assert answer.headers["x-should-retry"] == "true"
        assert 0 < int(answer.headers["retry-after"]) < 60
        assert error_of(http.post(CHAT, json=hello(), headers=name), 422)


def test_an_answer_that_takes_long_keeps_its_key(
    api: Service, http: httpx.Client, key: str, name: dict[str, str]
) -> None:
    with busy(http, name):
        (first,) = keys_of(api, key)
        assert first.status is None
        eventually(
            lambda: keys_of(api, key)[0].locked_until > first.locked_until,
            what="the claim is renewed",
            within_seconds=LOCK_SECONDS,
        )


def test_who_goes_away_frees_the_key(
    api: Service, http: httpx.Client, key: str, name: dict[str, str], fake_engine: FakeEngine
) -> None:
    with api.http(key) as another, busy(another, name):
        assert len(keys_of(api, key)) == 1
    assert fake_engine.disconnected.wait(10)
    eventually(lambda: keys_of(api, key) == [], what="the key is free")
    with pytest.raises(httpx.ReadTimeout):
        http.post(CHAT, json=hello(SLOW), headers=name, timeout=0.4)
    eventually(lambda: keys_of(api, key) == [], what="the key is free")
    assert http.post(CHAT, json=hello(), headers=name).status_code == 200


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_an_answer_is_generated_once(
    http: httpx.Client, name: dict[str, str], fake_engine: FakeEngine, path: str, is_stream: bool
) -> None:
    body = hello(stream=is_stream)
    if path != CHAT:
        body = {"model": BASE_MODEL, "prompt": "hello", "stream": is_stream}
    first = http.post(path, json=body, headers=name)
    second = http.post(path, json=body, headers=name)
    assert_replays(first, second)
    assert len(fake_engine.requests) == 1
    assert second.content.endswith(b"data: [DONE]\n\n") == is_stream
    assert error_of(http.post(path, json=body | {"seed": 1}, headers=name), 422)


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("prompt", [DIE, f"{REFUSE}400", f"{REFUSE}429", f"{REFUSE}500"])
def test_an_error_of_the_engine_is_not_kept(
    api: Service,
    http: httpx.Client,
    key: str,
    name: dict[str, str],
    fake_engine: FakeEngine,
    is_stream: bool,
    prompt: str,
) -> None:
    for attempt in (1, 2):
        answer = http.post(CHAT, json=hello(prompt, stream=is_stream), headers=name)
        assert "error" in answer.text
        assert REPLAYED not in answer.headers
        assert len(fake_engine.requests) == attempt
        eventually(lambda: keys_of(api, key) == [], what="the key is free")
    assert http.post(CHAT, json=hello(), headers=name).status_code == 200


def test_without_a_key_answers_leave_no_trace(
    api: Service, client: OpenAI, key: str, fake_engine: FakeEngine
) -> None:
    for is_stream in (False, True):
        for _ in range(2):
            answer = client.chat.completions.create(**hello(stream=is_stream))
            assert answer if not is_stream else list(answer)
    assert len(fake_engine.requests) == 4
    assert keys_of(api, key) == []


def test_many_at_once_are_one_job(
    http: httpx.Client, asked: dict[str, Any], name: dict[str, str]
) -> None:
    def ask(_: int) -> httpx.Response:
        while (answer := http.post(JOBS, json=asked, headers=name)).status_code == 409:
            assert answer.headers["x-should-retry"] == "true"
        return answer

    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert len({answer.content for answer in answers}) == 1
    assert [REPLAYED in answer.headers for answer in answers].count(False) == 1
    assert len(ids(http, JOBS)) == 1


def test_through_the_client_everything_is_done_once(
    client: OpenAI, fake_engine: FakeEngine, name: dict[str, str]
) -> None:
    def twice(create: Callable[..., Any], **more: Any) -> Any:
        first, second = (create(**more, extra_headers=name) for _ in range(2))
        assert first.content == second.content
        assert (first.headers.get(REPLAYED), second.headers.get(REPLAYED)) == (None, "true")
        return second.parse()

    raw = client.with_raw_response
    file = twice(raw.files.create, file=("train.jsonl", dataset()), purpose="fine-tune")
    assert [one.id for one in client.files.list()] == [file.id]
    job = twice(raw.fine_tuning.jobs.create, model=BASE_MODEL, training_file=file.id)
    for move in ("pause", "resume", "cancel"):
        twice(getattr(raw.fine_tuning.jobs, move), fine_tuning_job_id=job.id)
    assert [one.status for one in client.fine_tuning.jobs.list()] == ["cancelled"]
    chat = twice(raw.chat.completions.create, **hello())
    assert chat.choices[0].message.content == "".join(ANSWER)
    assert len(fake_engine.requests) == 1


def test_a_replayed_stream_is_one_for_the_client(
    client: OpenAI, fake_engine: FakeEngine, name: dict[str, str]
) -> None:
    first, second = (
        list(client.chat.completions.create(**hello(stream=True), extra_headers=name))
        for _ in range(2)
    )
    assert first == second
    assert "".join(chunk.choices[0].delta.content or "" for chunk in first) == "".join(ANSWER)
    assert len(fake_engine.requests) == 1


class Lossy(httpx2.HTTPTransport):
    """Loses the answers to the next POSTs: the server has done what it was asked."""

    losses = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.last = request
        answer = super().handle_request(request)
        if request.method == "POST" and self.losses:
            self.losses -= 1
            answer.read()
            answer.close()
            raise httpx2.ReadError("connection reset", request=request)
        return answer


@pytest.fixture
def lossy() -> Lossy:
    return Lossy()


@pytest.fixture
def patient(api: Service, key: str, lossy: Lossy) -> Iterator[OpenAI]:
    """OpenAI's own client as it is by default: it repeats what got no answer."""
    with (
        DefaultHttpxClient(transport=lossy) as http,
        OpenAI(base_url=api.base_url, api_key=key, http_client=http) as client,
    ):
        yield client


def test_what_the_client_repeats_after_a_lost_answer_is_done_once(
    api: Service, patient: OpenAI, lossy: Lossy
) -> None:
    before = stored_content(api)
    lossy.losses = 1
    file = patient.files.create(file=("train.jsonl", dataset()), purpose="fine-tune")
    assert lossy.last.headers["x-stainless-retry-count"] == "1"
    assert [one.id for one in patient.files.list()] == [file.id]
    assert stored_content(api) == before + 1
    lossy.losses = 2
    answer = patient.fine_tuning.jobs.with_raw_response.create(
        model=BASE_MODEL, training_file=file.id
    )
    job = answer.parse()
    assert lossy.last.headers["x-stainless-retry-count"] == "2"
    assert answer.headers[REPLAYED] == "true"
    assert [one.id for one in patient.fine_tuning.jobs.list()] == [job.id]
    for move, status in (("pause", "paused"), ("cancel", "cancelled")):
        lossy.losses = 1
        # Were it done twice, the second would be a mistake.
        assert getattr(patient.fine_tuning.jobs, move)(job.id).status == status


def test_the_same_job_created_anew_is_a_second_job(client: OpenAI, training_file: str) -> None:
    made = [
        client.fine_tuning.jobs.with_raw_response.create(
            model=BASE_MODEL, training_file=training_file
        )
        for _ in range(2)
    ]
    assert [REPLAYED in answer.headers for answer in made] == [False, False]
    assert len({answer.parse().id for answer in made}) == 2
    assert len(list(client.fine_tuning.jobs.list())) == 2


def repeated(http: httpx.Client, path: str) -> httpx.Response:
    """Send a move as OpenAI's client does whose first attempt did not arrive."""
    return http.post(path, headers={"x-stainless-retry-count": "1"})


def test_a_pause_after_a_resume_is_a_new_one(http: httpx.Client, asked: dict[str, Any]) -> None:
    path = f"{JOBS}/{http.post(JOBS, json=asked).json()['id']}"
    for move in ("pause", "resume", "pause", "resume", "pause"):
        answer = repeated(http, f"{path}/{move}")
        assert REPLAYED not in answer.headers
        for told in (answer, http.get(path)):
            assert (told.json()["status"] == "paused") == (move == "pause")
    assert repeated(http, f"{path}/pause").headers[REPLAYED] == "true"
    http.post(f"{path}/cancel", headers={"Idempotency-Key": "x"})
    assert error_of(repeated(http, f"{path}/pause"), 400)["code"] == "invalid_job_state"


def test_an_upload_after_its_deletion_is_a_new_one(
    api: Service, http: httpx.Client, name: dict[str, str]
) -> None:
    repetition = {"x-stainless-retry-count": "1"}
    first, kept = upload(http, repetition), upload(http, name)
    assert upload(http, repetition).headers[REPLAYED] == "true"
    for file_id in ids(http, "/v1/files"):
        http.delete(f"/v1/files/{file_id}")
    second = upload(http, repetition)
    assert REPLAYED not in second.headers
    assert ids(http, "/v1/files") == [second.json()["id"]] != [first.json()["id"]]
    # What was asked for under a key of one's own was done, and is not done again.
    assert_replays(kept, upload(http, name))


@pytest.mark.parametrize("count", ["", "x", "-1", "1.5", "99999"])
def test_a_retry_count_that_is_none_says_nothing(
    api: Service, http: httpx.Client, key: str, count: str
) -> None:
    for _ in range(2):
        assert REPLAYED not in upload(http, {"x-stainless-retry-count": count}).headers
    assert len(ids(http, "/v1/files")) == 2
    assert keys_of(api, key) == []


def test_a_key_counts_more_than_a_retry_count(
    http: httpx.Client, asked: dict[str, Any], name: dict[str, str]
) -> None:
    first = http.post(JOBS, json=asked, headers=name | {"x-stainless-retry-count": "0"})
    assert_replays(first, http.post(JOBS, json=asked, headers=name))
    other = {"Idempotency-Key": "other", "x-stainless-retry-count": "1"}
    assert REPLAYED not in http.post(JOBS, json=asked, headers=other).headers
    assert len(ids(http, JOBS)) == 2
