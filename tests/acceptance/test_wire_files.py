"""Files over the wire, through OpenAI's own client."""

import io
import os
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types import FileDeleted, FileObject

from tests.support.factories import BASE_MODEL, dataset
from tests.support.service import Service
from tests.support.wire import error_of, strict, strict_list

PAGE_KEYS = {"first_id", "last_id", "has_more"}


def upload(client: OpenAI, content: bytes | None = None, name: str = "train.jsonl") -> FileObject:
    content = dataset() if content is None else content
    return client.files.create(file=(name, content), purpose="fine-tune")


def post(http: httpx.Client, content: bytes, **form: str) -> httpx.Response:
    return http.post(
        "/v1/files",
        data={"purpose": "fine-tune"} | form,
        files={"file": ("train.jsonl", content)},
    )


def test_a_file_is_created(client: OpenAI) -> None:
    content = dataset()
    answer = client.files.with_raw_response.create(
        file=("my train.jsonl", content), purpose="fine-tune"
    )
    file = strict(answer, FileObject)
    assert file.id.startswith("file-")
    assert (file.bytes, file.filename, file.purpose) == (
        len(content),
        "my train.jsonl",
        "fine-tune",
    )
    assert file.status == "processed"
    assert file.expires_at is None


def test_a_file_is_retrieved_as_it_was_created(client: OpenAI) -> None:
    made = upload(client)
    assert strict(client.files.with_raw_response.retrieve(made.id), FileObject) == made


def test_the_clients_own_waiting_ends(client: OpenAI) -> None:
    assert client.files.wait_for_processing(upload(client).id, poll_interval=0.01)


@pytest.mark.parametrize("content", [dataset(), dataset(2).replace(b"\n", b"\r\n")])
def test_content_comes_back_byte_for_byte(client: OpenAI, content: bytes) -> None:
    answer = client.files.content(upload(client, content).id)
    assert answer.read() == content
    assert answer.response.headers["content-length"] == str(len(content))
    assert answer.response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("a/b.jsonl", "b.jsonl"),
        ('quo"te.jsonl', None),
        ("ümläut ✓.jsonl", "ümläut ✓.jsonl"),
        ("x" * 300, "x" * 255),
    ],
)
def test_a_file_keeps_its_name_and_nothing_of_a_path(
    client: OpenAI, sent: str, kept: str | None
) -> None:
    file = upload(client, name=sent)
    assert kept is None or file.filename == kept
    disposition = client.files.content(file.id).response.headers["content-disposition"]
    assert disposition.startswith("attachment")
    assert disposition.isascii()


def test_a_file_expires_when_it_was_asked_to(client: OpenAI) -> None:
    file = client.files.create(
        file=("train.jsonl", dataset()),
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3_600},
    )
    assert file.expires_at == pytest.approx(file.created_at + 3_600, abs=1)


@pytest.mark.parametrize("seconds", [3_599, 2_592_001, -1])
def test_an_expiry_out_of_bounds_is_refused(client: OpenAI, seconds: int) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.files.create(
            file=("train.jsonl", dataset()),
            purpose="fine-tune",
            expires_after={"anchor": "created_at", "seconds": seconds},
        )
    assert refused.value.param == "expires_after[seconds]"


def test_files_are_listed_newest_first(client: OpenAI) -> None:
    made = [upload(client).id for _ in range(3)]
    answer = client.files.with_raw_response.list()
    listed = strict_list(answer, FileObject, keys=PAGE_KEYS)
    assert [file.id for file in listed] == made[::-1]


def test_a_project_without_files_has_an_empty_list(client: OpenAI) -> None:
    assert strict_list(client.files.with_raw_response.list(), FileObject, keys=PAGE_KEYS) == []


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_the_client_walks_through_all_pages(client: OpenAI, order: Any) -> None:
    made = [upload(client).id for _ in range(5)]
    walked = [file.id for file in client.files.list(limit=2, order=order)]
    assert walked == (made if order == "asc" else made[::-1])


def test_files_are_listed_by_purpose(client: OpenAI) -> None:
    made = upload(client)
    assert [file.id for file in client.files.list(purpose="fine-tune")] == [made.id]
    assert list(client.files.list(purpose="fine-tune-results")) == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 10_001}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "file-none"}, "after"),
    ],
)
def test_a_bad_query_is_refused_by_name(
    http: httpx.Client, query: dict[str, Any], param: str
) -> None:
    assert error_of(http.get("/v1/files", params=query), 400)["param"] == param


def test_a_file_is_deleted_with_its_content(api: Service, client: OpenAI) -> None:
    file = upload(client)
    stored = list((api.data_dir / "storage" / "files").iterdir())
    answer = client.files.with_raw_response.delete(file.id)
    assert strict(answer, FileDeleted).deleted is True
    assert len(list((api.data_dir / "storage" / "files").iterdir())) == len(stored) - 1
    with pytest.raises(NotFoundError):
        client.files.retrieve(file.id)
    with pytest.raises(NotFoundError):
        client.files.delete(file.id)


def test_a_file_in_use_is_not_deleted(client: OpenAI) -> None:
    file = upload(client)
    job = client.fine_tuning.jobs.create(model=BASE_MODEL, training_file=file.id)
    with pytest.raises(BadRequestError) as refused:
        client.files.delete(file.id)
    assert refused.value.code == "file_in_use"
    assert file.id in refused.value.message
    client.fine_tuning.jobs.cancel(job.id)
    assert client.files.delete(file.id).deleted


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no records"),
        (b"Question,Answer\na,b\n", "CSV begins with a header"),
        (b"PK\x03\x04" + bytes(100), "the zip is damaged"),
        (dataset(6) + b'{"messages": [{"role": \n', "line 7"),
        (b'{"messages": [{"role": "user", "content": "hi"}]}\n', "line 1"),
        (b"\x00\xff\xfe" * 100, "line 1"),
    ],
    ids=["empty", "csv", "zip", "broken_json_on_line_7", "no_assistant_turn", "binary"],
)
def test_a_bad_dataset_is_refused_at_once_by_its_line(
    api: Service, http: httpx.Client, content: bytes, told: str
) -> None:
    before = stored_content(api)
    error = error_of(post(http, content), 400)
    assert error["param"] == "file"
    assert told in error["message"]
    assert stored_content(api) == before


def test_another_purpose_is_refused(http: httpx.Client) -> None:
    error = error_of(post(http, dataset(), purpose="assistants"), 400)
    assert error["param"] == "purpose"
    assert "'assistants'" in error["message"]
    assert "'fine-tune'" in error["message"]


@pytest.mark.parametrize("missing", ["file", "purpose"])
def test_a_missing_part_is_named(http: httpx.Client, missing: str) -> None:
    form: dict[str, Any] = {
        "purpose": (None, "fine-tune"),
        "file": ("train.jsonl", dataset()),
    }
    del form[missing]
    answer = http.post("/v1/files", files=form)
    assert error_of(answer, 400)["param"] == missing


def test_an_unknown_part_is_named(http: httpx.Client) -> None:
    error = error_of(post(http, dataset(), mood="good"), 400)
    assert (error["param"], error["code"]) == ("mood", "unknown_field")


def test_a_file_sent_as_text_is_refused(http: httpx.Client) -> None:
    answer = http.post("/v1/files", data={"purpose": "fine-tune", "file": dataset().decode()})
    error = error_of(answer, 400)
    assert error["param"] == "file"
    assert error["message"].startswith("Invalid 'file': expected a file, found '{")


@pytest.mark.parametrize("bytes_over", [1, 70_000, 30_000_000])
@pytest.mark.parametrize("way", ["declared", "chunked"])
def test_an_upload_that_is_too_large_leaves_nothing(
    api: Service, http: httpx.Client, bytes_over: int, way: str
) -> None:
    size = api.settings.max_upload_bytes + bytes_over
    content = dataset(1)
    content *= size // len(content) + 1
    before = stored_content(api)
    request = http.build_request(
        "POST",
        "/v1/files",
        data={"purpose": "fine-tune"},
        files={"file": ("train.jsonl", io.BytesIO(content))},
    )
    if way == "chunked":
        body = request.read()
        request = http.build_request(
            "POST",
            "/v1/files",
            content=(body[start : start + 65_536] for start in range(0, len(body), 65_536)),
            headers={"content-type": request.headers["content-type"]},
        )
    error = error_of(http.send(request), 413)
    assert error["code"] == "too_large"
    assert stored_content(api) == before
    assert http.get("/v1/files").json()["data"] == []


def test_an_upload_that_just_fits_is_taken(api: Service, client: OpenAI) -> None:
    content = dataset(1)
    content += b" " * (api.settings.max_upload_bytes - len(content))
    assert upload(client, content).bytes == api.settings.max_upload_bytes


def test_an_upload_that_breaks_off_leaves_nothing(api: Service, http: httpx.Client) -> None:
    before = stored_content(api)

    def half() -> Any:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="t"\r\n\r\n'
        yield dataset()
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        http.post(
            "/v1/files",
            content=half(),
            headers={"content-type": "multipart/form-data; boundary=x"},
        )
    assert http.get("/v1/files").json()["data"] == []
    assert stored_content(api) == before


def stored_content(api: Service) -> set[str]:
    """Return every file in storage, finished or not."""
    root = api.data_dir / "storage"
    return {os.path.join(at, name) for at, _, names in os.walk(root) for name in names}
