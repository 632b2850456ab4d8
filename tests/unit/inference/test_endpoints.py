from typing import Any

import pytest

from app.domain.errors import InvalidInput
from app.inference.endpoints import Endpoint, endpoints
from app.settings import load_settings


def read(url: str, **more: Any) -> list[Endpoint]:
    return endpoints(load_settings({"ENGINE_URL": url, **more}))


def test_without_a_word_there_is_one_on_this_machine() -> None:
    assert endpoints(load_settings({})) == [Endpoint("builtin", "http://127.0.0.1:8001")]


def test_up_runs_several_on_ports_in_a_row() -> None:
    settings = load_settings({"ENGINES": "3", "ENGINE_PORT": "9000"})
    assert [one.url for one in endpoints(settings)] == [
        f"http://127.0.0.1:{port}" for port in (9000, 9001, 9002)
    ]


def test_a_list_says_of_each_what_it_is_and_what_it_is_for() -> None:
    text = "http://a:8001/, https://b?base=x&base=y ,vllm+http://c:8000"
    assert read(text) == [
        Endpoint("builtin", "http://a:8001"),
        Endpoint("builtin", "https://b", frozenset({"x", "y"})),
        Endpoint("vllm", "http://c:8000"),
    ]
    assert [one.kind for one in read(text, ENGINE_KIND="vllm")] == ["vllm", "vllm", "vllm"]


@pytest.mark.parametrize(
    "text",
    [
        ",",
        "a:8001",
        "ftp://a",
        "http://",
        "http://a?model=x",
        "http://a?base=",
        "http://a#x",
        "http://me:secret@a",
        "http://a,http://a/",
    ],
)
def test_what_is_no_such_list_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="ENGINE_URL"):
        read(text)
