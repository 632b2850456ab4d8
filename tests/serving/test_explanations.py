"""Explanations: the formula on models with a drawn head, and the engine with trained models."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor

from app.base_models import InstalledBaseModel, ensure_installed, load_catalogue
from app.domain.errors import InvalidInput, NotFound
from app.domain.job_spec import AdapterSpec
from app.domain.task_routes import EXPLANATIONS, PREDICTIONS, refuse_other_route
from app.domain.tasks import TASKS
from app.storage.local import LocalStorage
from tests.serving.test_predictions import MINILM, OPINIONS, answer, loading, refusal, scores
from tests.tasks.conftest import task_spec
from tests.training.conftest import Attempt
from worker.serving.app import create_app
from worker.serving.attributions import attribute
from worker.serving.prediction_request import TaskModel
from worker.serving.settings import EngineSettings
from worker.tasks.text_classification import TextClassification
from worker.training.bases import WarmBases
from worker.training.commands import Train
from worker.training.manifest import BaseModelRef
from worker.training.run import run_job
from worker.trunk.device import DeviceProfile

# peft 0.21 reads a name that transformers 5 has given a new one.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

CPU = DeviceProfile("cpu", "float32", 1)
OUTLINES: Mapping[str, Mapping[str, Any]] = {
    "single_label": {"problem": "single_label", "labels": ["bad", "fair", "good"]},
    "multi_label": {"problem": "multi_label", "labels": ["cheap", "quick"]},
    "regression": {"problem": "regression", "labels": []},
}
TEXT = "Zoë's café — 😀 unbelievably good!"
PAIR = {"text": "The soup was cold.", "text_pair": "Was the soup warm?"}
# How adapters change a model: layers of it, or what stands before its input.
KINDS = {
    "layers": AdapterSpec(options={"r": 4}),
    "prompt": AdapterSpec(type="prompt-tuning", options={"num_virtual_tokens": 4}),
}


@pytest.fixture(scope="module")
def base(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> InstalledBaseModel:
    catalogue = load_catalogue(tmp_path_factory.mktemp("catalogue") / "models.toml")
    return ensure_installed(catalogue.get(MINILM), models_dir)


@pytest.fixture(scope="module", params=OUTLINES)
def model(request: pytest.FixtureRequest, base: InstalledBaseModel) -> TaskModel:
    """A model whose head was never trained, and tells texts apart all the same."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    task = TextClassification(base.directory, OUTLINES[request.param], CPU, None)
    task.model.eval().requires_grad_(False)
    task.model.classifier.weight.normal_(std=0.3)
    return TaskModel(task, task.model, {})


def explained(
    model: TaskModel, value: Any, target: str | None = None, steps: int = 20, together: int = 20
) -> dict[str, Any]:
    example = model.task.encode_input(value)
    return attribute(model, value, example, target, num_steps=steps, steps_per_pass=together)


def scores_of_embeddings(model: TaskModel, value: Any, embeddings: Tensor) -> Tensor:
    """Return [rows, labels], computed without the task's own code."""
    batch = dict(model.task.collate([model.task.encode_input(value)]))
    del batch["input_ids"]
    rows = {name: one.expand(len(embeddings), -1) for name, one in batch.items()}
    logits: Tensor = model.module(inputs_embeds=embeddings, **rows).logits
    problem = model.task.problem  # type: ignore[attr-defined]
    return {"single_label": logits.softmax(1), "multi_label": logits.sigmoid()}.get(problem, logits)


def ends_of_path(model: TaskModel, value: Any) -> tuple[Tensor, Tensor]:
    """Return [1, tokens, width] twice, the embeddings of an input and of its baseline."""
    ids = model.task.encode_input(value).features["input_ids"]
    tokenizer: Any = model.task.tokenizer  # type: ignore[attr-defined]
    special = {tokenizer.cls_token_id, tokenizer.sep_token_id}
    padded = [one if one in special else tokenizer.pad_token_id for one in ids]
    embed = model.task.model.get_input_embeddings()
    return embed(torch.tensor([padded])), embed(torch.tensor([ids]))


def test_attributions_are_integrated_gradients_and_make_the_difference_of_the_scores(
    model: TaskModel,
) -> None:
    value = PAIR if model.task.problem == "multi_label" else TEXT  # type: ignore[attr-defined]
    found = explained(model, value, steps=100)
    labels = model.task.labels or ["score"]  # type: ignore[attr-defined]
    number = labels.index(found["label"])
    start, end = ends_of_path(model, value)
    with torch.no_grad():
        baseline, score = (
            float(scores_of_embeddings(model, value, one)[0, number]) for one in (start, end)
        )
    assert found["score"] == pytest.approx(score, abs=1e-5)
    assert found["baseline_score"] == pytest.approx(baseline, abs=1e-5)
    total = sum(one["attribution"] for one in found["attributions"])
    assert total - (score - baseline) == pytest.approx(found["convergence_delta"], abs=1e-5)
    assert abs(found["convergence_delta"]) < 0.01

    # By hand, with the rule of midpoints.
    points = (torch.arange(60)[:, None, None] + 0.5) / 60
    path = (start + points * (end - start)).requires_grad_()
    scores_of_embeddings(model, value, path)[:, number].sum().backward()
    assert path.grad is not None
    by_hand = (path.grad.mean(dim=0) * (end - start)[0]).sum(dim=1)
    own = [one for one in by_hand.tolist() if one != 0]  # Special tokens are as in the baseline.
    assert [one["attribution"] for one in found["attributions"]] == pytest.approx(own, abs=0.02)


@pytest.mark.parametrize("value", [TEXT, PAIR], ids=["text", "pair"])
def test_each_token_tells_where_it_is(model: TaskModel, value: Any) -> None:
    texts = {"text": value} if isinstance(value, str) else value
    found = explained(model, value)["attributions"]
    assert {one["field"] for one in found} == set(texts)
    for one in found:
        part = texts[one["field"]][one["start"] : one["end"]]
        assert part
        if one["token"] != "[UNK]":
            plain = part.lower().replace("ë", "e").replace("é", "e")
            assert one["token"].removeprefix("##") == plain


def test_any_label_can_be_explained_and_the_predicted_one_is_by_itself(model: TaskModel) -> None:
    example = model.task.encode_input(TEXT)
    with torch.no_grad():
        predicted = model.task.predict(model.module, model.task.collate([example]))[0]
    labels: Sequence[str] = model.task.labels or ["score"]  # type: ignore[attr-defined]
    found = {label: explained(model, TEXT, label) for label in labels}
    values = predicted if isinstance(predicted, list) else [predicted]
    assert [found[label]["score"] for label in labels] == pytest.approx(values, abs=1e-5)
    assert explained(model, TEXT) == found[labels[values.index(max(values))]]
    with pytest.raises(InvalidInput, match="not among the labels") as refused:
        explained(model, TEXT, "ugly")
    assert refused.value.param == "parameters.target"


def test_how_many_steps_are_computed_at_once_changes_nothing(model: TaskModel) -> None:
    one, all_ = (explained(model, PAIR, together=count) for count in (3, 200))
    for ours, theirs in zip(one["attributions"], all_["attributions"], strict=True):
        assert ours["attribution"] == pytest.approx(theirs["attribution"], abs=1e-5)


def test_only_classifiers_of_texts_are_explained() -> None:
    refuse_other_route("m", "text-classification", EXPLANATIONS)
    for task in set(TASKS) - {"text-classification"}:
        with pytest.raises(InvalidInput, match=f"is a model for {task}: explained is") as refused:
            refuse_other_route("m", task, EXPLANATIONS)
        assert (refused.value.param, refused.value.code) == ("model", "wrong_route")


class RunningEngine:
    """An engine in this process that has every model of `KINDS`."""

    def __init__(self, runner: asyncio.Runner, root: Path, base: InstalledBaseModel) -> None:
        def find_base(name: str) -> InstalledBaseModel:
            if name not in (base.id, base.name):
                raise NotFound(f"no model {name!r}", param="model", code="model_not_found")
            return base

        def refuse_trunk(directory: Path) -> Any:
            raise AssertionError("no text is generated here")

        self._app = create_app(EngineSettings(adapter_root=root), find_base, refuse_trunk, CPU)
        self._runner = runner
        self._lifespan = self._app.router.lifespan_context(self._app)
        runner.run(self._start())

    def run(self, scenario: Any) -> None:
        async def drive() -> None:
            async with self._client() as client:
                await scenario(client)

        self._runner.run(drive())

    def served(self, name: str) -> TaskModel:
        found = self._app.state.engine.tasks.find(name)
        assert found is not None
        model: TaskModel = found.model
        return model

    async def stop(self) -> None:
        await self._lifespan.__aexit__(None, None, None)

    async def _start(self) -> None:
        await self._lifespan.__aenter__()
        async with self._client() as client:
            for name in KINDS:
                await answer(client, "/v1/load_lora_adapter", loading(name))

    def _client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://engine")


@pytest.fixture(scope="module")
def trained(base: InstalledBaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with an adapter of each kind."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("trained")
    storage = LocalStorage(root)
    for name, adapter in KINDS.items():
        spec = task_spec(
            storage,
            "text-classification",
            OPINIONS,
            adapter=adapter,
            learning_rate=5e-3,
            num_epochs=6,
        )
        implementation = TASKS[spec.task].implementation
        assert implementation is not None
        attempt = Attempt({})
        command = Train(
            epoch=1,
            spec=replace(spec, evaluation=replace(spec.evaluation, holdout=0.0)),
            implementation=implementation,
            base=BaseModelRef(base.id, str(base.directory), base.revision, base.name),
            storage_url=f"file://{root}",
            checkpoint_prefix=f"jobs/{name}",
            resume_from=None,
            deadline_file=None,
            checkpoint_interval_seconds=300.0,
        )
        run_job(command, WarmBases(CPU), attempt.commands, attempt.send, token_budget=1024)
        storage.delete("files/train")
        checkpoints = (root / "jobs" / name).iterdir()
        max(checkpoints, key=lambda path: path.stat().st_mtime).rename(root / name)
    return root


@pytest.fixture(scope="module")
def engine(trained: Path, base: InstalledBaseModel) -> Iterator[RunningEngine]:
    with asyncio.Runner() as runner:
        running = RunningEngine(runner, trained, base)
        yield running
        runner.run(running.stop())


@pytest.mark.parametrize("name", KINDS)
def test_a_trained_model_is_explained(engine: RunningEngine, name: str) -> None:
    texts = ["That was a dull meal.", "A lovely hotel it was"]

    async def scenario(client: httpx.AsyncClient) -> None:
        body = {"model": name, "inputs": texts, "parameters": {"steps": 100}}
        found = await answer(client, EXPLANATIONS, body)
        assert found["id"].startswith("expl-")
        assert (found["object"], found["model"]) == ("explanation", name)
        assert found["truncated_inputs"] == []
        assert found["usage"] == {"inputs": 2, "input_tokens": 8 + 7}
        body = {"model": name, "inputs": texts}
        predicted = (await answer(client, PREDICTIONS, body))["predictions"]
        for one, prediction in zip(found["explanations"], predicted, strict=True):
            told = {one["label"]: one["score"]}
            assert told == pytest.approx(scores(prediction), abs=1e-4)
            total = sum(token["attribution"] for token in one["attributions"])
            difference = one["score"] - one["baseline_score"]
            assert total - difference == pytest.approx(one["convergence_delta"], abs=1e-5)
            assert abs(one["convergence_delta"]) < 0.05
        # What was learnt is what counts.
        if name == "layers":
            for one, word in zip(found["explanations"][:2], ("dull", "lovely"), strict=True):
                most = max(one["attributions"], key=lambda token: token["attribution"])
                assert most["token"] == word

    engine.run(scenario)


def test_tokens_that_a_model_does_not_see_are_left_out(engine: RunningEngine) -> None:
    for name, seen in (("layers", 510), ("prompt", 507)):  # The prompt takes four places.
        served = engine.served(name)
        attributions = explained(served, "word " * 600, steps=2)["attributions"]
        assert len(attributions) == seen
        assert {one["token"] for one in attributions} == {"word"}


def test_explanations_and_predictions_do_not_disturb_each_other(engine: RunningEngine) -> None:
    text = "A lovely hotel it was"
    explain = {"model": "layers", "inputs": [text] * 2, "parameters": {"steps": 20}}
    predict = {"model": "layers", "inputs": [text, "ok"]}

    async def scenario(client: httpx.AsyncClient) -> None:
        alone = await answer(client, EXPLANATIONS, explain)
        predicted = await answer(client, PREDICTIONS, predict)
        mixed = await asyncio.gather(
            *(
                answer(client, path, body)
                for path, body in [(EXPLANATIONS, explain), (PREDICTIONS, predict)] * 3
            )
        )
        for one, other in zip(mixed[::2], mixed[1::2], strict=True):
            assert one["explanations"] == alone["explanations"]
            for ours, theirs in zip(other["predictions"], predicted["predictions"], strict=True):
                assert scores(ours) == pytest.approx(scores(theirs), abs=1e-5)

    engine.run(scenario)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"inputs": []}, "inputs"),
        ({"inputs": ["a"] * 17}, "inputs"),
        ({"inputs": ["a", 7]}, "inputs[1]"),
        ({"parameters": {"steps": 19}}, "parameters.steps"),
        ({"parameters": {"steps": 201}}, "parameters.steps"),
        ({"parameters": {"internal_batch_size": 0}}, "parameters.internal_batch_size"),
        ({"parameters": {"target": "ugly"}}, "parameters.target"),
        ({"parameters": {"baseline": "x"}}, "parameters.baseline"),
        ({"model": MINILM}, "model"),
    ],
)
def test_what_is_wrong_is_named(engine: RunningEngine, fields: dict[str, Any], param: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        body = {"model": "layers", "inputs": "A lovely hotel", **fields}
        assert (await refusal(client, EXPLANATIONS, body))["param"] == param

    engine.run(scenario)
