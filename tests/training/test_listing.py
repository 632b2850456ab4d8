from pathlib import Path
from random import Random

import pytest

from worker.trunk.listing import LISTING_NAME, Damaged, verify_listing, write_listing


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("adapter/weights", "adapter/config", "state/optimizer"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 20)
    write_listing(tmp_path)
    return tmp_path


def test_what_is_as_it_was_written_is_accepted(directory: Path) -> None:
    assert verify_listing(directory) == verify_listing(directory, part="adapter")


def test_of_a_part_the_rest_may_be_gone(directory: Path) -> None:
    (directory / "state/optimizer").unlink()
    verify_listing(directory, part="adapter")
    with pytest.raises(Damaged, match="state/optimizer is missing"):
        verify_listing(directory)


@pytest.mark.parametrize("name", ["adapter/weights", "state/optimizer"])
def test_any_changed_byte_of_a_file_is_found(directory: Path, name: str) -> None:
    content = (directory / name).read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        (directory / name).write_bytes(changed)
        with pytest.raises(Damaged, match=name):
            verify_listing(directory)


def test_a_damaged_list_is_found_or_harmless(directory: Path) -> None:
    """Never another error, and never a file that is not what was written."""
    chance = Random(1)
    path = directory / LISTING_NAME
    content = path.read_bytes()
    found = 0
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= chance.randrange(1, 256)
        path.write_bytes(changed if position % 3 else content[:position])
        try:
            verify_listing(directory)
        except Damaged:
            found += 1
    # What is left are changes of white space.
    assert found > 0.9 * len(content)
