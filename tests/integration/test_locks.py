from concurrent.futures import ThreadPoolExecutor

from app.db.database import Database
from app.db.repositories import locks


def acquire(database: Database, owner: str, ttl_seconds: float = 60, name: str = "sweep") -> bool:
    with database.write() as connection:
        return locks.acquire(connection, name, owner, ttl_seconds)


def test_a_lock_has_one_owner(database: Database) -> None:
    assert acquire(database, "first")
    assert not acquire(database, "second")


def test_its_owner_renews_it(database: Database) -> None:
    assert acquire(database, "first")
    assert acquire(database, "first")
    assert not acquire(database, "second")


def test_an_expired_lock_is_taken_over(database: Database) -> None:
    assert acquire(database, "first", ttl_seconds=-1)
    assert acquire(database, "second")
    assert not acquire(database, "first")


def test_locks_of_other_names_are_free(database: Database) -> None:
    assert acquire(database, "first", name="sweep")
    assert acquire(database, "second", name="another")


def acquire_at_once(database: Database, ttl_seconds: float) -> list[bool]:
    with ThreadPoolExecutor(max_workers=8) as pool:
        asked = [pool.submit(acquire, database, owner, ttl_seconds) for owner in "abcdefgh"]
    return [one.result() for one in asked]


def test_of_eight_that_want_a_lock_one_gets_it(database: Database) -> None:
    assert acquire_at_once(database, 60).count(True) == 1


def test_of_eight_that_want_an_expired_lock_one_gets_it(database: Database) -> None:
    assert acquire(database, "before", ttl_seconds=-1)
    assert acquire_at_once(database, 60).count(True) == 1
