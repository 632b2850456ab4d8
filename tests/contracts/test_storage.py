"""What every storage backend promises. A new one is added to `locations`, and nowhere else."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.domain.errors import NotFound, UnknownName
from app.storage import Storage, open_storage
from app.storage.port import STORAGE_BACKENDS

# How to make an empty place for each backend: a function from a new directory to a URL.
locations: dict[str, Callable[[Path], str]] = {"file": lambda directory: f"file://{directory}"}

OUTSIDE = ["../outside", "files/../../outside", "/etc/passwd", "", ".", "files/.."]


def test_every_backend_is_tested() -> None:
    assert locations.keys() == STORAGE_BACKENDS.keys()


@pytest.fixture(params=STORAGE_BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return locations[request.param](tmp_path / "a place with spaces")


@pytest.fixture
def storage(url: str) -> Storage:
    return open_storage(url.replace(" ", "%20"))


def read(storage: Storage, key: str) -> bytes:
    with storage.open(key) as stream:
        return stream.read()


def directory_with(storage: Storage, **files: bytes) -> Path:
    directory = storage.scratch()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def test_an_unknown_scheme_is_told_with_the_known_ones() -> None:
    with pytest.raises(UnknownName, match=r"'gs'.*file"):
        open_storage("gs://bucket")


@pytest.mark.parametrize("content", [b"", b"hello", bytes(range(256)) * 10_000])
def test_content_comes_back_as_it_was_put(storage: Storage, content: bytes) -> None:
    chunks = [content[start : start + 65_536] for start in range(0, len(content), 65_536)]
    stored = storage.put("files/one", chunks)
    assert stored.bytes == len(content)
    assert read(storage, "files/one") == content


def test_the_digest_is_that_of_the_content(storage: Storage) -> None:
    stored = storage.put("files/one", [b"hel", b"lo"])
    assert stored.sha256 == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


def test_storages_of_one_url_see_the_same(storage: Storage, url: str) -> None:
    storage.put("files/one", [b"hello"])
    assert read(open_storage(url), "files/one") == b"hello"


def test_what_was_never_put_is_not_found(storage: Storage) -> None:
    with pytest.raises(NotFound, match="files/one"):
        storage.open("files/one")
    with pytest.raises(NotFound, match="jobs/one"):
        storage.directory("jobs/one")


def test_a_source_that_breaks_leaves_nothing(storage: Storage, tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        storage.put("files/one", chunks())
    with pytest.raises(NotFound):
        storage.open("files/one")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_directory_is_published_whole(storage: Storage) -> None:
    scratch = directory_with(storage, weights=b"1")
    (scratch / "adapter").mkdir()
    (scratch / "adapter" / "config").write_bytes(b"2")
    storage.publish("jobs/one/step-1", scratch)
    published = storage.directory("jobs/one/step-1")
    assert (published / "weights").read_bytes() == b"1"
    assert (published / "adapter" / "config").read_bytes() == b"2"
    assert read(storage, "jobs/one/step-1/weights") == b"1"


def test_a_part_of_what_was_published_can_be_asked_for(storage: Storage) -> None:
    scratch = storage.scratch()
    (scratch / "adapter").mkdir()
    (scratch / "adapter" / "config").write_bytes(b"2")
    storage.publish("jobs/one/step-1", scratch)
    assert (storage.directory("jobs/one/step-1/adapter") / "config").read_bytes() == b"2"


def test_what_is_not_published_cannot_be_seen(storage: Storage) -> None:
    directory_with(storage, weights=b"1")
    with pytest.raises(NotFound):
        storage.directory("jobs/one")


def test_published_prefixes_do_not_disturb_each_other(storage: Storage) -> None:
    for step in ("1", "10", "2"):
        storage.publish(f"jobs/one/step-{step}", directory_with(storage, weights=step.encode()))
    storage.delete("jobs/one/step-1")
    assert read(storage, "jobs/one/step-10/weights") == b"10"
    assert read(storage, "jobs/one/step-2/weights") == b"2"


def test_scratch_directories_are_empty_and_differ(storage: Storage) -> None:
    first, second = storage.scratch(), storage.scratch()
    assert first != second
    assert not list(first.iterdir())


def test_a_key_is_deleted(storage: Storage) -> None:
    storage.put("files/one", [b"hello"])
    storage.put("files/two", [b"world"])
    storage.delete("files/one")
    with pytest.raises(NotFound):
        storage.open("files/one")
    assert read(storage, "files/two") == b"world"


def test_a_prefix_is_deleted_with_everything_under_it(storage: Storage) -> None:
    storage.publish("jobs/one/step-1", directory_with(storage, weights=b"1"))
    storage.publish("jobs/two/step-1", directory_with(storage, weights=b"2"))
    storage.delete("jobs/one")
    with pytest.raises(NotFound):
        storage.directory("jobs/one/step-1")
    assert read(storage, "jobs/two/step-1/weights") == b"2"


def test_deleting_what_is_not_there_is_no_error(storage: Storage) -> None:
    storage.delete("files/none")
    storage.put("files/one", [b"hello"])
    storage.delete("files/one")
    storage.delete("files/one")


def test_content_can_be_deleted_while_it_is_read(storage: Storage) -> None:
    storage.put("files/one", [b"hello"])
    with storage.open("files/one") as stream:
        storage.delete("files/one")
        assert stream.read() == b"hello"


@pytest.mark.parametrize("key", OUTSIDE)
def test_no_key_leads_outside(storage: Storage, tmp_path: Path, key: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    storage.put("files/one", [b"hello"])
    for use in (
        lambda: storage.put(key, [b"x"]),
        lambda: storage.open(key),
        lambda: storage.directory(key),
        lambda: storage.delete(key),
        lambda: storage.publish(key, directory_with(storage, weights=b"1")),
    ):
        with pytest.raises(NotFound):
            use()
    assert not list(outside.iterdir())
    assert read(storage, "files/one") == b"hello"


def test_free_room_is_known(storage: Storage) -> None:
    assert storage.free_bytes() > 0


_PUT_BEYOND_THE_LIMIT = """
import resource, signal, sys
from app.domain.errors import StorageFull
from app.storage import open_storage

storage = open_storage(sys.argv[1])
storage.put("files/small", [b"fits"])
# As on a full disk, a write beyond the limit fails; without this it would end the process.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536))
try:
    storage.put("files/large", [b"x" * 16_384] * 16)
except StorageFull as full:
    print(full.code)
"""


def test_without_room_nothing_is_stored(url: str, tmp_path: Path) -> None:
    storage = open_storage(url)
    result = subprocess.run(
        [sys.executable, "-c", _PUT_BEYOND_THE_LIMIT, url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout.strip(), result.stderr) == ("storage_full", "")
    with pytest.raises(NotFound):
        storage.open("files/large")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["small"]


def test_names_below_a_prefix_are_listed_in_order(storage: Storage) -> None:
    assert list(storage.list("jobs/one")) == []
    for name in ("b", "a"):
        storage.put(f"jobs/one/{name}", [b"1"])
    storage.put("jobs/one/c/d", [b"1"])
    assert list(storage.list("jobs/one")) == ["a", "b", "c"]
    assert list(storage.list("jobs/one/a")) == []


def test_what_was_just_written_is_young_and_what_is_not_there_has_no_age(
    storage: Storage,
) -> None:
    storage.put("files/one", [b"1"])
    age_seconds = storage.age_seconds("files/one")
    assert age_seconds is not None
    assert -1 < age_seconds < 60
    assert storage.age_seconds("files/two") is None


def test_what_was_begun_is_abandoned_after_its_time_only(storage: Storage) -> None:
    scratch = directory_with(storage, weights=b"1")
    storage.put("files/one", [b"1"])
    assert storage.delete_abandoned(older_than_seconds=60) == 0
    assert scratch.exists()
    assert storage.delete_abandoned(older_than_seconds=-60) >= 1
    assert not scratch.exists()
    assert read(storage, "files/one") == b"1"
