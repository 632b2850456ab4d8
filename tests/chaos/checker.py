"""The auditor: pure functions from evidence to violations. It takes nobody's word.

A step counts as computed when its `end` is in the step log. An attempt is named by its lease
epoch; the later attempt of a job has the higher one.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from app.db.repositories.events import Event
from app.domain.job_state import TERMINAL, JobStatus
from tests.chaos.evidence import Evidence, recipe_of
from tests.chaos.workload import Recipe
from worker.training.step_log import StepLine

# Of all steps, those computed again although a checkpoint of them had been published.
MAX_BEYOND_CHECKPOINT = 0.10

_SUCCEEDED = "The job has successfully completed"
_CANCELLED = "Fine-tuning job cancelled by its user"


@dataclass(frozen=True)
class Repeats:
    """How many steps were computed, how many of them again, and how many needlessly."""

    computed: int
    repeated: int
    beyond_checkpoint: int

    @property
    def repeated_share(self) -> float:
        return self.repeated / self.computed if self.computed else 0.0

    @property
    def beyond_share(self) -> float:
        return self.beyond_checkpoint / self.computed if self.computed else 0.0


@dataclass(frozen=True)
class Verdict:
    """What the checker found."""

    jobs: int
    lost: Sequence[str]
    zombie_steps: int
    overlaps: int
    published: int
    bit_equal: int
    repeats: Repeats
    violations: Sequence[str]


def check(
    evidence: Evidence,
    references: Mapping[Recipe, str],
    *,
    may_fail: Collection[str] = (),
    may_repeat: bool = False,
) -> Verdict:
    """Judge a run.

    Args:
        references: SHA-256 of the weights that an undisturbed run of each recipe has.
        may_fail: the jobs that were made to fail; no other one may.
        may_repeat: checkpoints were damaged, so that steps before them had to be repeated.
    """
    lost = lost_jobs(evidence)
    zombies, overlapping = zombie_steps(evidence.steps), overlaps(evidence.steps)
    repeats = count_repeats(evidence.steps)
    unequal = unequal_adapters(evidence, references)
    violations = [
        *(f"{job}: lost" for job in lost),
        *(
            f"{job}: {number} zombie steps of epoch {epoch}"
            for (job, epoch), number in Counter((one.job, one.epoch) for one in zombies).items()
        ),
        *(f"{job}: epochs {first} and {second} overlap" for job, first, second in overlapping),
        *failed_jobs(evidence, may_fail),
        *wrong_results(evidence),
        *unequal,
        *wrong_stories(evidence.stories, evidence),
        *wrong_epochs(evidence),
        *(f"left over: {process}" for process in evidence.left_over),
    ]
    if not may_repeat and repeats.beyond_share > MAX_BEYOND_CHECKPOINT:
        violations.append(f"{repeats.beyond_share:.1%} of the steps repeated beyond a checkpoint")
    return Verdict(
        jobs=len(evidence.jobs),
        lost=lost,
        zombie_steps=len(zombies),
        overlaps=len(overlapping),
        published=len(evidence.published),
        bit_equal=len(evidence.published) - len(unequal),
        repeats=repeats,
        violations=violations,
    )


def lost_jobs(evidence: Evidence) -> list[str]:
    """Return the jobs that were accepted, or have a row, and have not ended."""
    return sorted(
        job_id
        for job_id in evidence.accepted | evidence.jobs.keys()
        if job_id not in evidence.jobs or evidence.jobs[job_id].status not in TERMINAL
    )


def failed_jobs(evidence: Evidence, may_fail: Collection[str]) -> list[str]:
    """Return the jobs that failed, and why, though nothing was wrong with them."""
    return [
        f"{job.id}: failed: {job.error}"
        for job in evidence.jobs.values()
        if job.status is JobStatus.FAILED and job.id not in may_fail
    ]


def zombie_steps(lines: Iterable[StepLine]) -> list[StepLine]:
    """Return the steps that ended after a later attempt of the same job had begun its first."""
    by_job = _by_job_and_epoch(lines)
    return [
        line
        for epochs in by_job.values()
        for epoch, of_epoch in epochs.items()
        for line in of_epoch
        if line.phase == "end" and line.time > _first_begin_after(epochs, epoch)
    ]


def overlaps(lines: Iterable[StepLine]) -> list[tuple[str, int, int]]:
    """Return each two attempts of one job whose times of computing overlap."""
    found = []
    for job, epochs in _by_job_and_epoch(lines).items():
        spans = {
            epoch: (min(times), max(times))
            for epoch, of_epoch in epochs.items()
            if (times := [line.time for line in of_epoch if line.phase != "checkpoint"])
        }
        found += [
            (job, first, second)
            for first, (begin, end) in spans.items()
            for second, (other_begin, other_end) in spans.items()
            if first < second and begin <= other_end and other_begin <= end
        ]
    return found


def count_repeats(lines: Iterable[StepLine]) -> Repeats:
    """Count the steps, those computed before, and those of which there was a checkpoint."""
    computed = repeated = beyond = 0
    for epochs in _by_job_and_epoch(lines).values():
        seen: set[int] = set()
        for epoch in sorted(epochs):
            ended = [line.step for line in epochs[epoch] if line.phase == "end"]
            covered = _covered_before(epochs, epoch)
            computed += len(ended)
            repeated += sum(step in seen for step in ended)
            beyond += sum(step <= covered for step in ended)
            seen.update(ended)
    return Repeats(computed, repeated, beyond)


def wrong_results(evidence: Evidence) -> list[str]:
    """Return what is wrong with final adapters and files of results: one each, or none."""
    adapters = Counter(one.adapter.job_id for one in evidence.published)
    named = Counter(file for job in evidence.jobs.values() for file in job.result_files or ())
    wrong = [one.damage for one in evidence.published if one.damage]
    for job in evidence.jobs.values():
        expected = int(job.status is JobStatus.SUCCEEDED)
        if adapters[job.id] != expected:
            wrong.append(f"{job.id}: {job.status} with {adapters[job.id]} final adapters")
        if bool(job.result_files) != bool(expected):
            wrong.append(f"{job.id}: {job.status} with result files {job.result_files}")
    if named != Counter(evidence.results):
        wrong.append(f"{len(evidence.results)} files of results, of which jobs name {len(named)}")
    return wrong


def unequal_adapters(evidence: Evidence, references: Mapping[Recipe, str]) -> list[str]:
    """Return the final adapters whose weights are not those of an undisturbed run."""
    return [
        f"{one.adapter.job_id}: its weights differ from those of an undisturbed run"
        for one in evidence.published
        if one.adapter.job_id in evidence.jobs
        and one.weights_sha256 != references[recipe_of(evidence.jobs[one.adapter.job_id])]
    ]


def wrong_stories(stories: Mapping[str, Sequence[Event]], evidence: Evidence) -> list[str]:
    """Return the ended jobs whose events do not tell of exactly one end, and it the last move."""
    wrong = []
    for job_id, story in stories.items():
        is_ended = evidence.jobs[job_id].status in TERMINAL
        ends = sum(_tells_of_an_end(event) for event in story)
        if ends != int(is_ended):
            wrong.append(f"{job_id}: {ends} events tell of its end")
    return wrong


def wrong_epochs(evidence: Evidence) -> list[str]:
    """Return the jobs whose attempts did not come in the order of their epochs."""
    wrong = []
    for job, epochs in _by_job_and_epoch(evidence.steps).items():
        begins = [line for of_epoch in epochs.values() for line in of_epoch]
        begins = sorted((x for x in begins if x.phase == "begin"), key=lambda line: line.time)
        if any(second.epoch < first.epoch for first, second in pairwise(begins)):
            wrong.append(f"{job}: an epoch began a step after a higher one")
        if job in evidence.jobs and max(epochs) > evidence.jobs[job].lease_epoch:
            wrong.append(f"{job}: epoch {max(epochs)} was never claimed")
    return wrong


def _tells_of_an_end(event: Event) -> bool:
    return event.type == "message" and (
        event.message in (_SUCCEEDED, _CANCELLED) or event.level == "error"
    )


def _by_job_and_epoch(lines: Iterable[StepLine]) -> dict[str, dict[int, list[StepLine]]]:
    found: dict[str, dict[int, list[StepLine]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        found[line.job][line.epoch].append(line)
    return found


def _first_begin_after(epochs: Mapping[int, Sequence[StepLine]], epoch: int) -> float:
    """Return when the first step of a later attempt began."""
    return min(
        (
            line.time
            for later, lines in epochs.items()
            for line in lines
            if later > epoch and line.phase == "begin"
        ),
        default=float("inf"),
    )


def _covered_before(epochs: Mapping[int, Sequence[StepLine]], epoch: int) -> int:
    """Return the last step of which an earlier attempt had published a checkpoint by then."""
    begins = [line.time for line in epochs[epoch] if line.phase == "begin"]
    begin = min(begins, default=float("-inf"))
    return max(
        (
            line.step
            for earlier, lines in epochs.items()
            for line in lines
            if earlier < epoch and line.phase == "checkpoint" and line.time < begin
        ),
        default=0,
    )
