"""Which of several test processes runs what: those share a test's services that share its share."""

import re

from xdist.scheduler import LoadScopeScheduling

_DATABASE = re.compile(r"\[.*(sqlite|postgres).*\]$")


class ByDatabase(LoadScopeScheduling):  # type: ignore[misc]
    """Gives a process all tests of a folder on one database, and of the others whole files.

    So what tests of a session have in common (the API, the whole stack, a job that ran on it) is
    made once a database, as in one process. Not by pytest-xdist's groups, which come to nothing
    with pytest 9.
    """

    def _split_scope(self, nodeid: str) -> str:
        path, _, test = nodeid.partition("::")
        database = _DATABASE.search(test)
        if database is None:
            return path
        return f"{path.rpartition('/')[0]} on {database[1]}"
