"""How several test processes share out the tests."""

import re

from xdist.scheduler import LoadScopeScheduling

_DATABASE = re.compile(r"\[.*(sqlite|postgres).*\]$")


class ByDatabase(LoadScopeScheduling):  # type: ignore[misc]
    """Gives all tests of a folder on one database to one process; of the others, whole files.

    So what the tests of a session have in common (the API, the whole stack, a job that ran on it)
    is made once for each database, as it is in a single process. Groups of pytest-xdist would say
    the same, but version 3.8 writes them into `item._nodeid`, which pytest 9.2 does not read.
    """

    def _split_scope(self, nodeid: str) -> str:
        path, _, test = nodeid.partition("::")
        database = _DATABASE.search(test)
        if database is None:
            return path
        return f"{path.rpartition('/')[0]} on {database[1]}"
