"""Small slices of the table of tasks; `make acceptance` runs the whole of it."""

import pytest

from tests.acceptance.table.rows import ROWS, Row
from tests.acceptance.table.run import run
from tests.conftest import INSTALLATIONS
from tests.support.service import Service

SMALL = [row for row in ROWS if row.small is not None]


# On one of both installations: what a task is does not depend on the database.
@pytest.mark.parametrize("stack", INSTALLATIONS[:1], indirect=True, scope="session")
@pytest.mark.parametrize("row", SMALL, ids=[row.name for row in SMALL])
def test_a_task_goes_from_upload_to_a_prediction(stack: Service, row: Row) -> None:
    assert row.small is not None
    with stack.client() as client, stack.http(stack.key) as http:
        result = run(client, http, row, row.small)

    assert result.is_enough
    assert result.answer
