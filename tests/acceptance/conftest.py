"""A project of its own for each test, and the ways into it."""

import secrets
from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI

from tests.support.service import Service


@pytest.fixture
def key(api: Service) -> str:
    """The key of a new project."""
    return api.new_key(project=secrets.token_hex(4))


@pytest.fixture(scope="session")
def shared_client(api: Service) -> Iterator[OpenAI]:
    with api.client() as client:
        yield client


@pytest.fixture
def client(shared_client: OpenAI, key: str) -> OpenAI:
    """OpenAI's own client, with the key of the test's project."""
    return shared_client.with_options(api_key=key)


@pytest.fixture
def http(api: Service, key: str) -> Iterator[httpx.Client]:
    with api.http(key) as http:
        yield http


@pytest.fixture
def anonymous(api: Service) -> Iterator[httpx.Client]:
    """A client without a key."""
    with api.http(None) as http:
        yield http
