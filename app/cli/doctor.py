"""`tunesmith doctor`: is everything in order, and if not, what is to be done?"""

import json
import logging
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

import click

from app.domain.errors import InvalidInput
from app.resources import Resources
from app.services.inspection import Finding, State, inspect
from app.settings import load_settings

_COLOURS = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red"}
_STATE_WIDTH = max(len(state) for state in State)
_CHECK_WIDTH = len("database disk")
_INDENT = " " * (_STATE_WIDTH + _CHECK_WIDTH + 4)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
def doctor(as_json: bool) -> None:
    """Look the installation over, whether it runs or not. Changes nothing.

    Ends with status 1 if any check says FAIL.
    """
    # What goes wrong is in the findings, with what to do about it.
    logging.disable()
    findings = []
    for finding in _findings():
        findings.append(finding)
        if not as_json:
            _show(finding)
    counts = Counter(finding.state for finding in findings)
    if as_json:
        click.echo(json.dumps(_as_json(findings, counts), indent=2, ensure_ascii=False))
    else:
        click.echo("\n" + ", ".join(f"{counts[state]} {state}" for state in State))
    if counts[State.FAIL]:
        raise SystemExit(1)


def _findings() -> Iterator[Finding]:
    try:
        settings = load_settings()
    except InvalidInput as error:
        yield Finding("settings", State.FAIL, error.message, "Correct this environment variable.")
        return
    yield from inspect(Resources(settings, read_only=True))


def _show(finding: Finding) -> None:
    state = click.style(f"{finding.state:{_STATE_WIDTH}}", fg=_COLOURS[finding.state], bold=True)
    click.echo(f"{state}  {finding.check:{_CHECK_WIDTH}}  {finding.found}")
    if finding.advice is not None:
        width = max(60, shutil.get_terminal_size((100, 24)).columns)
        click.echo(
            textwrap.fill(
                finding.advice,
                width,
                initial_indent=f"{_INDENT}→ ",
                subsequent_indent=f"{_INDENT}  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        )


def _as_json(findings: list[Finding], counts: Counter[State]) -> dict[str, object]:
    return {
        "counts": {state: counts[state] for state in State},
        "findings": [asdict(finding) for finding in findings],
    }
