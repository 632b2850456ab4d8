"""A line in which projects take turns, so that no project waits for all of another's work."""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")
Lane = Hashable

_NONE_RUNNING: Mapping[str, int] = Counter[str]()


class FairLine(Generic[T]):
    """Whoever waits, by project; each project has lanes, which take turns within it.

    A lane holds what can be done together: for one lane, `take` can be asked for more of the same.
    """

    def __init__(self) -> None:
        # Projects and lanes are in the order of their turns; none of them is empty.
        self._projects: OrderedDict[str, OrderedDict[Lane, deque[T]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(self.length_of, self._projects))

    def __iter__(self) -> Iterator[T]:
        for lanes in self._projects.values():
            for lane in lanes.values():
                yield from lane

    @property
    def projects(self) -> int:
        """How many projects wait."""
        return len(self._projects)

    def length_of(self, project_id: str) -> int:
        """Return how much of a project waits."""
        return sum(map(len, self._projects.get(project_id, {}).values()))

    def has_lane(self, lane: Lane) -> bool:
        return any(lane in lanes for lanes in self._projects.values())

    def add(self, project_id: str, one: T, lane: Lane = None) -> None:
        """Let something wait behind all else of its project and lane."""
        self._lane(project_id, lane).append(one)

    def put_back(self, project_id: str, one: T, lane: Lane = None) -> None:
        """Let something wait before all else of its lane; its project is next, as it has been."""
        self._lane(project_id, lane).appendleft(one)
        self._projects.move_to_end(project_id, last=False)

    def first(self, running: Mapping[str, int] = _NONE_RUNNING) -> tuple[str, Lane, T] | None:
        """Return whose turn it is, and what: of the projects with the least running, the first."""
        if not self._projects:
            return None
        project_id = min(self._projects, key=lambda one: running.get(one, 0))
        lane, waiting = next(iter(self._projects[project_id].items()))
        return project_id, lane, waiting[0]

    def take(self, project_id: str, lane: Lane = None) -> T:
        """Take the first of a lane; the turn of its project and of the lane is over."""
        lanes = self._projects[project_id]
        one = lanes[lane].popleft()
        lanes.move_to_end(lane)
        self._projects.move_to_end(project_id)
        self._forget_empty(project_id, lane)
        return one

    def project_with(self, lane: Lane) -> str | None:
        """Return the next project in order that has such a lane."""
        return next((one for one, lanes in self._projects.items() if lane in lanes), None)

    def drop(self, is_over: Callable[[T], bool]) -> list[T]:
        """Take out whatever does not wait any longer, and return it."""
        dropped: list[T] = []
        for project_id, lanes in list(self._projects.items()):
            for lane, waiting in list(lanes.items()):
                for _ in range(len(waiting)):
                    one = waiting.popleft()
                    (dropped if is_over(one) else waiting).append(one)
                self._forget_empty(project_id, lane)
        return dropped

    def clear(self) -> None:
        self._projects.clear()

    def _lane(self, project_id: str, lane: Lane) -> deque[T]:
        return self._projects.setdefault(project_id, OrderedDict()).setdefault(lane, deque())

    def _forget_empty(self, project_id: str, lane: Lane) -> None:
        lanes = self._projects[project_id]
        if not lanes[lane]:
            del lanes[lane]
        if not lanes:
            del self._projects[project_id]
