"""Every kind of adapter in every task: it learns, is saved, and plain `peft` loads the same."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from app.domain.combinations import refusal
from app.domain.errors import InvalidInput
from app.domain.job_spec import AdapterSpec, DatasetRef
from app.domain.peft_kinds import FULL, PEFT_KINDS
from app.domain.tasks import TASKS, TEXT_GENERATION
from tests.tasks.conftest import FindModel, encoded, make_task
from tests.training.conftest import job_spec
from tests.tuning.conftest import ROWS, Row, trained_steps
from tests.tuning.samples import SAMPLES
from tests.tuning.short_whisper import shortened
from worker.tasks import LossOptions
from worker.tuning import Tuning
from worker.tuning.loading import load_tuned
from worker.tuning.making import make_tuning

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    # `peft` reads the ranks that AdaLoRA kept as patterns of names.
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),
]

STEPS = 6
# The catalogue's for MiniLM; each kind of adapter learns at its own multiple of it.
RATE = 1e-3
QUICK = "text-classification"


def cells() -> Iterator[Any]:
    for task in TASKS:
        for row in ROWS:
            if task == TEXT_GENERATION or refusal(task, row.kind):
                continue
            if SAMPLES[task].has_convolutions_only and row.kind == "vera":
                continue
            marks = () if task == QUICK else (pytest.mark.slow,)
            yield pytest.param(task, row, id=f"{task}-{row}", marks=marks)


@pytest.fixture(scope="session")
def find_base(find_model: FindModel, tmp_path_factory: pytest.TempPathFactory) -> FindModel:
    """Return the directory of a sample's model."""
    short: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name != "whisper-base":
            return find_model(name)
        if name not in short:
            short[name] = shortened(find_model(name), tmp_path_factory.mktemp("whisper"))
        return short[name]

    return find


class Case:
    """A task with a batch of its sample."""

    def __init__(self, name: str, directory: Path, seed: int = 0) -> None:
        sample = SAMPLES[name]
        self.task = make_task(name, directory, sample.records, seed)
        # Learnt as training goes on, and the same each time.
        torch.manual_seed(0)
        self.batch = self.task.collate(encoded(self.task, sample.records))

    def losses(self, model: nn.Module) -> Tensor:
        """Return the loss of each example, which follows from the logits."""
        torch.manual_seed(0)
        found = self.task.loss(model, self.batch, LossOptions())
        sums: Tensor = found.sums
        return sums

    @torch.no_grad()
    def judge(self, model: nn.Module) -> Tensor:
        return self.losses(model.eval())

    def tune(self, adapter: AdapterSpec, name: str) -> Tuning:
        spec = job_spec(DatasetRef("unused", "unused", "0" * 64, 1))
        spec = replace(spec, task=name, adapter=adapter)
        return make_tuning(spec, self.task, STEPS)


@pytest.mark.parametrize(("name", "row"), list(cells()))
def test_trained_saved_and_loaded(
    find_base: FindModel, tmp_path: Path, name: str, row: Row
) -> None:
    directory = find_base(SAMPLES[name].model)
    case = Case(name, directory)
    untuned = case.judge(case.task.model)
    tuning = case.tune(row.adapter, name)
    tuning.model.eval()
    losses = (case.losses(tuning.model).mean() for _ in range(STEPS))
    trained_steps(tuning, losses, RATE * PEFT_KINDS[row.kind].learning_rate_factor)
    tuned = case.judge(tuning.model)
    assert tuned.mean() < untuned.mean()
    with torch.no_grad(), tuning.as_base():
        assert_same(case.losses(tuning.model), untuned)
    assert_same(case.judge(tuning.model), tuned)
    tuning.save(tmp_path, "tests/base")

    # Another seed: a head that is not loaded would be another.
    served = Case(name, directory, seed=1)
    assert_same(served.judge(load_tuned(served.task, tmp_path)), tuned)
    if row.kind == FULL:
        plain: Any = type(case.task.model).from_pretrained(tmp_path)
        assert_same(case.judge(plain), tuned)
        return
    other: Any = Case(name, directory, seed=1).task.model
    loaded: Any = PeftModel.from_pretrained(other, str(tmp_path))
    assert_same(case.judge(loaded), tuned)
    if not PEFT_KINDS[row.kind].merges:
        return
    # `peft` cannot take apart what was trained whole and is more than one layer.
    heads = [loaded.base_model.model.get_submodule(name) for name in case.task.head_modules]
    is_simple = all(isinstance(head.original_module, nn.Linear) for head in heads)
    if is_simple or row.kind == "lora":
        assert_same(case.judge(loaded.merge_and_unload()), tuned)


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_vera_says_that_it_has_no_convolutions(find_model: FindModel) -> None:
    case = Case("image-classification", find_model(SAMPLES["image-classification"].model))
    with pytest.raises(InvalidInput, match="linear layers only"):
        case.tune(AdapterSpec("vera"), "image-classification")
