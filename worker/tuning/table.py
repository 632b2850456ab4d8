"""The table of kinds of adapter and tasks in docs/adapters.md: `python -m worker.tuning.table`."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from app.domain.combinations import refusal
from app.domain.peft_kinds import PEFT_KINDS, PeftKind
from app.domain.tasks import TASKS, TEXT_GENERATION

BEGIN = "<!-- begin: python -m worker.tuning.table -->"
END = "<!-- end -->"

_NO = "–"


def table() -> str:
    """Return the table, and below it why what is not there is not."""
    return "\n".join([*_cells(), "", *_properties(), "", *_reasons()])


def updated(page: str) -> str:
    """Return a page with the table between its marks renewed."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def _cells() -> Iterator[str]:
    yield f"| kind | {' | '.join(f'`{task}`' for task in TASKS)} |"
    yield "|---" * (1 + len(TASKS)) + "|"
    for name, kind in PEFT_KINDS.items():
        cells = (_cell(task, name, kind) for task in TASKS)
        yield f"| `{name}` | {' | '.join(cells)} |"


def _cell(task: str, name: str, kind: PeftKind) -> str:
    if refusal(task, name) is not None:
        return _NO
    if task != TEXT_GENERATION:
        return "trains, serves"
    return "trains, serves mixed" if kind.serving == "mixed" else "trains, serves alone"


def _properties() -> Iterator[str]:
    yield "| kind | what is learnt | rate over LoRA's | merges |"
    yield "|---|---|---|---|"
    for name, kind in PEFT_KINDS.items():
        merges = "yes" if kind.merges else _NO
        yield f"| `{name}` | {kind.summary} | {kind.learning_rate_factor:g} | {merges} |"


def _reasons() -> Iterator[str]:
    for task in TASKS:
        kinds: dict[str, list[str]] = {}
        for name in PEFT_KINDS:
            if reason := refusal(task, name):
                kinds.setdefault(reason, []).append(name)
        for reason, names in kinds.items():
            yield f"- {', '.join(f'`{name}`' for name in names)} and `{task}`: {reason}."


def main() -> int:
    """Rewrite the page, or say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, nargs="?", default=Path("docs/adapters.md"))
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if it would")
    asked = parser.parse_args()
    old = asked.page.read_text()
    new = updated(old)
    if asked.check:
        return int(new != old)
    asked.page.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
