"""`tunesmith doctor`, run as an operator runs it, and what it said."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from tests.support.service import REPOSITORY


@dataclass(frozen=True)
class Report:
    """What one run found: by check, a state and words."""

    status: int
    states: Mapping[str, str]
    words: Mapping[str, str]

    @property
    def failed(self) -> set[str]:
        return {check for check, state in self.states.items() if state == "FAIL"}


def run_doctor(
    environment: Mapping[str, str], *arguments: str
) -> "subprocess.CompletedProcess[str]":
    result = subprocess.run(
        [sys.executable, "-m", "app", "doctor", *arguments],
        cwd=REPOSITORY,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == ""
    return result


def examine(environment: Mapping[str, str]) -> Report:
    """Run the doctor and check what is true of every answer."""
    result = run_doctor(environment, "--json")
    report = json.loads(result.stdout)
    findings = report["findings"]
    states = {one["check"]: one["state"] for one in findings}
    assert len(states) == len(findings), "one finding a check"
    for one in findings:
        assert (one["advice"] is None) == (one["state"] == "ok"), one
    for state, count in report["counts"].items():
        assert list(states.values()).count(state) == count
    assert result.returncode == (1 if report["counts"]["FAIL"] else 0)
    words = {one["check"]: f"{one['found']} {one['advice'] or ''}" for one in findings}
    return Report(result.returncode, states, words)
