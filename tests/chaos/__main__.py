"""`python -m tests.chaos`: every experiment, one table, and a status that tells of violations."""

import secrets
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import click

from tests.chaos.backends import Kind
from tests.chaos.catalogue import EXPERIMENTS, Experiment
from tests.chaos.lab import Lab, open_lab
from tests.chaos.outcome import Outcome, as_text, write_results
from tests.support.service import REPOSITORY

NAMES = [experiment.name for experiment in EXPERIMENTS]
_SHOWN = 10


@click.command()
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="Run this one; repeatable.")
@click.option("--seed", type=int, default=None, help="Of all choices; a random one if absent.")
@click.option("--quick", is_flag=True, help="Small sizes, as in the tests.")
@click.option("--results", type=click.Path(path_type=Path), default=None, help="Where to write.")
def main(only: tuple[str, ...], seed: int | None, quick: bool, results: Path | None) -> None:
    """Drive the real stack through faults; end with status 1 if any promise was broken."""
    # As Ctrl-C does: every block is left, and with it ends what it had started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    results = results or REPOSITORY / ".tunesmith" / "chaos" / str(seed)
    click.echo(f"seed {seed}; results in {results}")
    outcomes: list[Outcome] = []
    with open_lab(seed) as lab:
        for experiment in EXPERIMENTS:
            if only and experiment.name not in only:
                continue
            for kind in experiment.kinds:
                outcome = _run(lab, experiment, kind, quick)
                outcomes.append(outcome)
                _tell(outcome)
                write_results(results, seed, outcomes)
        is_passed = all(outcome.is_passed for outcome in outcomes)
        lab.keep = not is_passed
    click.echo(f"\n{as_text(outcomes)}\n\nseed {seed}")
    if not is_passed:
        click.echo(f"what it left is in {lab.root}")
        sys.exit(1)


def _run(lab: Lab, experiment: Experiment, kind: Kind, quick: bool) -> Outcome:
    began = time.monotonic()
    size = experiment.quick if quick else experiment.full
    try:
        outcome = experiment.run(lab, kind, size)
    except Exception:  # The other experiments are still worth running.
        outcome = Outcome(
            experiment.name, kind, Counter(), violations=[f"it broke: {traceback.format_exc()}"]
        )
    return replace(outcome, experiment=experiment.name, seconds=time.monotonic() - began)


def _tell(outcome: Outcome) -> None:
    faults = sum(outcome.faults.values())
    click.echo(
        f"{outcome.experiment} on {outcome.installation}: {outcome.word}; {faults} faults, "
        f"{outcome.figures or ''} {outcome.seconds:.0f} s"
    )
    if not outcome.is_passed:
        for violation in outcome.found[:_SHOWN]:
            click.echo(f"    {violation}")


if __name__ == "__main__":
    # A library of the test servers complains of a container's environment; nobody can act on it.
    warnings.simplefilter("ignore")
    main()
