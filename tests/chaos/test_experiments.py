"""Every experiment at its small size: no promise is broken, and every control is caught."""

import pytest

from tests.chaos.backends import Kind
from tests.chaos.catalogue import EXPERIMENTS, Experiment
from tests.chaos.lab import Lab
from tests.chaos.outcome import as_text

EACH = [
    pytest.param(
        experiment,
        kind,
        id=f"{experiment.name}-{kind}",
        marks=() if experiment.is_quick else pytest.mark.slow,
    )
    for experiment in EXPERIMENTS
    for kind in experiment.kinds
]


@pytest.mark.parametrize(("experiment", "kind"), EACH)
def test_promises_hold(lab: Lab, experiment: Experiment, kind: Kind) -> None:
    outcome = experiment.run(lab, kind, experiment.quick)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    lab.keep = lab.keep or not outcome.is_passed
    assert outcome.is_passed, "\n".join([as_text([outcome]), *outcome.found, str(lab.root)])
