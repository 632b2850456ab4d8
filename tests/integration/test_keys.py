from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from app.db.database import Database
from app.db.repositories import keys as rows
from app.db.tables import api_keys
from app.domain.errors import NotFound, Unauthenticated
from app.services.keys import authenticate, create_first_key, create_key


def new_key(database: Database, project: str = "default", organization: str = "acme") -> str:
    with database.write() as connection:
        return create_key(connection, organization=organization, project=project, name="test")


def test_a_key_names_its_project_and_organisation(database: Database) -> None:
    key = new_key(database)
    with database.read() as connection:
        principal = authenticate(connection, key)
        assert [one.id for one in rows.list_all(connection)] == [principal.key_id]
    assert principal.organization_name == "acme"
    assert principal.organization_id.startswith("org-")
    assert principal.project_id.startswith("proj_")


def test_keys_of_one_project_share_it_and_others_do_not(database: Database) -> None:
    made = [
        new_key(database),
        new_key(database),
        new_key(database, project="other"),
        new_key(database, organization="other"),
    ]
    with database.read() as connection:
        first, second, third, fourth = (authenticate(connection, key) for key in made)
    assert first.project_id == second.project_id
    assert len({first.project_id, third.project_id, fourth.project_id}) == 3
    assert first.organization_id == third.organization_id != fourth.organization_id


def test_the_secret_itself_is_not_stored(database: Database) -> None:
    secret = new_key(database).removeprefix("sk-ts-").split("-", 1)[1]
    with database.read() as connection:
        row = connection.execute(select(api_keys)).one()
    assert secret not in str(row)
    assert row.secret_sha256 != secret


@pytest.mark.parametrize("change", [lambda key: key[:-1], lambda key: key + "x", str.lower])
def test_a_key_that_is_nearly_right_is_refused(database: Database, change: object) -> None:
    key = new_key(database)
    assert callable(change)
    with database.read() as connection, pytest.raises(Unauthenticated, match="Incorrect"):
        authenticate(connection, change(key))


@pytest.mark.parametrize("key", [None, ""])
def test_without_a_key_it_is_told_how_to_send_one(database: Database, key: str | None) -> None:
    with database.read() as connection, pytest.raises(Unauthenticated, match="Authorization"):
        authenticate(connection, key)


@pytest.mark.parametrize("key", ["sk-ts-", "-", "sk-ts--", "é", "x" * 10_000, "'; --", "%"])
def test_whatever_is_no_key_is_refused(database: Database, key: str) -> None:
    with database.read() as connection, pytest.raises(Unauthenticated):
        authenticate(connection, key)


def test_a_revoked_key_is_refused_at_once(database: Database) -> None:
    key, other = new_key(database), new_key(database)
    with database.write() as connection:
        rows.revoke(connection, authenticate(connection, key).key_id)
    with database.read() as connection:
        with pytest.raises(Unauthenticated):
            authenticate(connection, key)
        assert authenticate(connection, other)


def test_a_key_is_revoked_once(database: Database) -> None:
    key = new_key(database)
    with database.write() as connection:
        key_id = authenticate(connection, key).key_id
        rows.revoke(connection, key_id)
        with pytest.raises(NotFound, match=key_id):
            rows.revoke(connection, key_id)


def test_the_first_key_is_made_once(database: Database) -> None:
    with database.write() as connection:
        key = create_first_key(connection, "acme")
        assert create_first_key(connection, "acme") is None
        assert authenticate(connection, key).organization_name == "acme"


def test_processes_that_start_together_make_one_first_key(database: Database) -> None:
    def start(_: int) -> str | None:
        with database.write() as connection:
            return create_first_key(connection, "acme")

    with ThreadPoolExecutor(max_workers=8) as pool:
        made = [key for key in pool.map(start, range(8)) if key is not None]
    assert len(made) == 1
