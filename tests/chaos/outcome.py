"""What an experiment came to, and the table of all of them."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from tests.chaos.checker import Verdict

_HEADINGS = (
    "experiment",
    "installation",
    "jobs",
    "kills / faults",
    "lost",
    "zombie steps",
    "published",
    "bit-equal",
    "repeated (all / beyond checkpoint)",
    "verdict",
    "seconds",
)


@dataclass(frozen=True)
class Outcome:
    """One experiment's result.

    Attributes:
        faults: how often each kind of fault was made.
        verdict: the checker's; None where there was nothing to check by it.
        violations: what the experiment itself found wrong; with the checker's, all must be none.
        figures: further measurements, for the reader.
        skipped: why it could not run here.
    """

    experiment: str
    installation: str
    faults: Counter[str]
    verdict: Verdict | None = None
    violations: Sequence[str] = ()
    figures: dict[str, object] = field(default_factory=dict)
    skipped: str | None = None
    is_control: bool = False
    seconds: float = 0.0

    @property
    def found(self) -> list[str]:
        """Return every violation."""
        return [*(self.verdict.violations if self.verdict else ()), *self.violations]

    @property
    def is_passed(self) -> bool:
        """A control passes when the checker caught it; its own list holds what it missed."""
        return not (self.violations if self.is_control else self.found)

    @property
    def word(self) -> str:
        if self.skipped:
            return f"skipped: {self.skipped}"
        if self.is_control:
            return "caught" if self.is_passed else "NOT CAUGHT"
        return "ok" if self.is_passed else "VIOLATED"

    def cells(self) -> tuple[str, ...]:
        """Return its row of the table."""
        faults = ", ".join(f"{number} {name}" for name, number in sorted(self.faults.items()))
        seconds = f"{self.seconds:.0f}"
        if self.verdict is None:
            jobs = str(self.figures.get("jobs", "-"))
            nothing = ("-",) * 5
            return (self.experiment, self.installation, jobs, faults, *nothing, self.word, seconds)
        verdict = self.verdict
        repeats = verdict.repeats
        return (
            self.experiment,
            self.installation,
            str(verdict.jobs),
            faults,
            str(len(verdict.lost)),
            str(verdict.zombie_steps),
            str(verdict.published),
            f"{verdict.bit_equal}/{verdict.published}",
            f"{repeats.repeated_share:.1%} / {repeats.beyond_share:.1%}",
            self.word,
            seconds,
        )


def as_text(outcomes: Sequence[Outcome]) -> str:
    """Return the table for a terminal."""
    rows = [_HEADINGS, *(outcome.cells() for outcome in outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def write_results(directory: Path, seed: int, outcomes: Sequence[Outcome]) -> None:
    """Write the table as Markdown, and everything as JSON."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [_HEADINGS, ("---",) * len(_HEADINGS), *(outcome.cells() for outcome in outcomes)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    (directory / "results.md").write_text(f"Seed {seed}.\n\n{table}\n")
    told = [_as_object(outcome) for outcome in outcomes]
    document = {"seed": seed, "outcomes": told}
    (directory / "results.json").write_text(json.dumps(document, indent=2, default=str) + "\n")


def _as_object(outcome: Outcome) -> dict[str, object]:
    # A Counter is a dict of its own kind, which `asdict` cannot copy.
    plain = replace(outcome, faults=Counter(), figures={})
    own = {"faults": dict(outcome.faults), "figures": outcome.figures, "word": outcome.word}
    return asdict(plain) | own
