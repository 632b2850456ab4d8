"""Ways of training a task: noise, adversaries, class weights, and not forgetting."""

import base64
import json
import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from transformers import BertConfig, BertModel

from app.base_models import ensure_installed, load_catalogue
from app.domain.errors import InvalidInput
from app.domain.job_spec import AdapterRef, AdapterSpec, Adversarial, Anchor, JobSpec, Replay
from app.storage.local import LocalStorage
from tests.training.conftest import Attempt, RunAttempt, job_spec, put_records
from worker.tasks import Example
from worker.tasks.labels import class_weights
from worker.training.anchor import WeightAnchor, fisher_importance
from worker.training.embedding_changes import EmbeddingChanges
from worker.training.manifest import BaseModelRef

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")

IMPLEMENTATION = "worker.tasks.text_classification:TextClassification"

FRUIT = [
    {"text": text, "label": label}
    for label, things in {"fruit": "apple pear plum fig", "tool": "saw axe drill rake"}.items()
    for thing in things.split()
    for text in (f"I have a {thing}.", f"Where is my {thing}?", f"The {thing} is here.")
]
# Whoever learns these alone forgets that there is fruit.
MORE_TOOLS = [
    {"text": f"{start} {thing}.", "label": "tool"}
    for thing in ("hammer", "chisel", "spade", "file")
    for start in ("I have a", "This is the")
]


@pytest.fixture(scope="session")
def encoder(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> BaseModelRef:
    catalogue = load_catalogue(tmp_path_factory.mktemp("catalogue") / "models.toml")
    installed = ensure_installed(catalogue.get("all-minilm-l6-v2"), models_dir)
    return BaseModelRef(installed.id, str(installed.directory), installed.revision, installed.name)


@pytest.fixture
def run_task(run_attempt: RunAttempt, encoder: BaseModelRef) -> Callable[..., Attempt]:
    def run(spec: JobSpec, **options: Any) -> Attempt:
        return run_attempt(spec, base=encoder, implementation=IMPLEMENTATION, **options)

    return run


@pytest.fixture
def spec(storage: LocalStorage) -> JobSpec:
    """Four steps on texts that are easy to tell apart."""
    spec = job_spec(put_records(storage, "fruit", FRUIT), batch_size=6, learning_rate=3e-3)
    adapter = AdapterSpec(options={"r": 4, "alpha": 8})
    return replace(spec, task="text-classification", adapter=adapter)


def with_options(spec: JobSpec, **options: Any) -> JobSpec:
    return replace(spec, hyperparameters=replace(spec.hyperparameters, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"neftune_noise_alpha": 10.0},
        {"adversarial": Adversarial("fgm", 1.0)},
        {"adversarial": Adversarial("pgd", 1.0, 2)},
        {"class_weights": {"fruit": 5.0}},
        {"label_smoothing": 0.2},
    ],
    ids=["neftune", "fgm", "pgd", "class_weights", "label_smoothing"],
)
def test_each_way_changes_what_is_learnt_and_repeats_itself(
    run_task: Callable[..., Attempt], spec: JobSpec, options: dict[str, Any]
) -> None:
    plain = run_task(spec)
    changed = run_task(with_options(spec, **options), lease=2)
    again = run_task(with_options(spec, **options), lease=3)

    def norms(attempt: Attempt) -> list[float]:
        return [one["grad_norm"] for one in attempt.of_type("step")]

    assert norms(changed) != norms(plain)
    assert norms(changed) == norms(again)


def tiny_encoder() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    return BertModel(config).eval()


def loss_of(model: BertModel) -> Callable[[], Tensor]:
    ids = torch.arange(1, 13).view(2, 6)

    def compute() -> Tensor:
        found: Tensor = model(input_ids=ids).last_hidden_state.pow(3).sum(dim=(1, 2))
        return found.sum()

    return compute


@pytest.mark.parametrize(("kind", "steps"), [("fgm", 1), ("pgd", 3)])
def test_an_adversary_adds_the_gradient_of_inputs_that_hurt_within_epsilon(
    kind: Any, steps: int
) -> None:
    model, epsilon = tiny_encoder(), 0.5
    compute = loss_of(model)
    changes = EmbeddingChanges(model, 0.0, Adversarial(kind, epsilon, steps))
    seen: list[Tensor] = []
    weight = model.encoder.layer[0].output.dense.weight

    clean_loss = compute()
    (clean,) = torch.autograd.grad(clean_loss, weight)
    normalisation = model.embeddings.LayerNorm
    handle = normalisation.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].detach())
    )
    told = changes.accumulate(compute)
    handle.remove()
    plain, attacked = seen[0], seen[-1]
    reach = (attacked - plain).flatten(1).norm(dim=1)
    assert (reach <= epsilon * 1.0001).all()
    assert (reach > 0).all()

    assert told.item() == pytest.approx(clean_loss.detach().item())
    assert weight.grad is not None
    assert not torch.allclose(weight.grad, clean)
    # As it was before, once the batch is done.
    assert compute().item() == pytest.approx(clean_loss.detach().item())


def test_fgm_is_one_step_of_epsilon_along_the_gradient() -> None:
    model, epsilon = tiny_encoder(), 0.3
    compute = loss_of(model)
    embeddings = model.get_input_embeddings()
    captured: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        captured.append(output)

    handle = embeddings.register_forward_hook(keep)
    compute().backward()
    handle.remove()
    slope = captured[0].grad
    assert slope is not None
    expected_delta = epsilon * slope / slope.flatten(1).norm(dim=1)[:, None, None]
    weight = model.encoder.layer[0].output.dense.weight
    assert weight.grad is not None
    clean = weight.grad.clone()
    handle = embeddings.register_forward_hook(lambda m, i, output: output + expected_delta)
    (attacked,) = torch.autograd.grad(compute(), weight)
    handle.remove()
    weight.grad = None

    EmbeddingChanges(model, 0.0, Adversarial("fgm", epsilon)).accumulate(compute)

    torch.testing.assert_close(weight.grad, clean + attacked)


def test_noise_is_bounded_and_only_there_while_learning() -> None:
    model = tiny_encoder()
    compute = loss_of(model)
    with torch.no_grad():
        plain = compute().detach().item()
    changes = EmbeddingChanges(model, 8.0, None)

    noisy = [changes.accumulate(compute).item() for _ in range(2)]

    assert noisy[0] != noisy[1]
    with torch.no_grad():
        assert compute().detach().item() == plain


def test_balanced_class_weights_are_those_of_scikit_learn() -> None:
    targets = [0, 0, 0, 1, 2, 2]
    examples = [Example({}, target, 1) for target in targets]

    found = class_weights("balanced", ["a", "b", "c"], examples)

    expected = compute_class_weight("balanced", classes=np.arange(3), y=np.array(targets))
    assert found.tolist() == pytest.approx(expected.tolist())


def test_class_weights_of_an_unknown_class_are_refused() -> None:
    with pytest.raises(InvalidInput, match="'z'") as refused:
        class_weights({"z": 2.0}, ["a", "b"], [])
    assert refused.value.param == "tunesmith.training.class_weights"


def test_an_anchor_pulls_each_weight_to_its_start_by_its_importance() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    anchor = WeightAnchor([("w", weight)], 0.5, {"w": torch.tensor([1.0, 4.0])})
    with torch.no_grad():
        weight += 1.0

    anchor.add_gradients()

    assert weight.grad is not None
    assert weight.grad.tolist() == [0.5, 2.0]


def test_importance_is_the_mean_squared_gradient_over_its_mean() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    examples = [Example({"x": value}, None, 1) for value in ([1.0, 0.0], [3.0, 2.0])]

    found = fisher_importance(
        [("w", weight)], examples, lambda one: (torch.tensor(one.features["x"]) * weight).sum()
    )

    assert found["w"].tolist() == pytest.approx([10 / 7, 4 / 7])


def earlier_and_later(
    run_task: Callable[..., Attempt],
    storage: LocalStorage,
    spec: JobSpec,
    first: str,
    **options: Any,
) -> dict[str, Any]:
    """Learn more tools, after `first`: return what was forgotten."""
    new = put_records(storage, "more", MORE_TOOLS)
    second = replace(
        with_options(spec, num_epochs=6, **options),
        training_file=new,
        validation_file=new,
        start_from=AdapterRef("ft:first", f"{first}/adapter"),
    )
    attempt = run_task(replace(second, job_id=f"second-{secrets.token_hex(4)}"))
    report = json.loads(base64.b64decode(attempt.last["results"]["report.json"]))
    assert report["forgetting"]["base"]["rows"] == attempt.last["report"]["forgetting"]["rows"]
    forgetting: dict[str, Any] = attempt.last["report"]["forgetting"]["metrics"]
    return forgetting


def test_less_is_forgotten_with_replay_and_with_an_anchor(
    run_task: Callable[..., Attempt], storage: LocalStorage, spec: JobSpec
) -> None:
    earlier = spec.training_file
    measured = Replay(earlier, 0.0)
    first = run_task(with_options(replace(spec, job_id="first"), num_epochs=6)).last["prefix"]
    forgotten = partial(earlier_and_later, run_task, storage, spec, first)

    without = forgotten(replay=measured)
    replayed = forgotten(replay=Replay(earlier, 0.6))
    anchored = forgotten(replay=measured, anchor=Anchor("ewc", 100.0))

    assert without["loss"]["base"] == pytest.approx(replayed["loss"]["base"])
    assert without["loss"]["difference"] > 0.3, "nothing was forgotten: nothing is shown"
    assert replayed["loss"]["difference"] < 0.7 * without["loss"]["difference"]
    assert anchored["loss"]["difference"] < 0.7 * without["loss"]["difference"]
