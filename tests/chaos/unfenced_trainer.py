"""A trainer that knows no deadline: see `unfenced`."""

from worker.training.child import main
from worker.training.deadline import Deadline


def remove_deadline() -> None:
    Deadline.enforce = lambda _: None  # type: ignore[assignment,method-assign]


if __name__ == "__main__":
    remove_deadline()
    main()
