"""Target texts from source texts: loss, generation and its options, and what training brings."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import cross_entropy
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from app.domain.errors import InvalidInput
from app.domain.job_spec import AdapterSpec
from app.storage.local import LocalStorage
from tests.support.datasets import faq_completions
from tests.tasks.conftest import (
    CPU,
    FindModel,
    RunTask,
    answered,
    encoded,
    judged,
    loss_of,
    make_task,
    predicted,
    task_spec,
    validations,
)
from worker.evaluation.measure import values
from worker.tasks.text2text_generation import Text2TextGeneration

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TASK = "text2text-generation"
COUNTED: list[dict[str, Any]] = [
    {"prompt": "one two three", "completion": "four five"},
    {"prompt": "two three", "completion": "four"},
    {"prompt": "six", "completion": "seven eight nine"},
    {"prompt": "nine eight seven", "completion": "six five four three"},
]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SIZE = {"vocab_size": 16, "d_model": 32}


@pytest.fixture(scope="module")
def t5_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the words for nine numbers, and nothing of them."""
    config = T5Config(
        **SIZE,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        # With weights as small as usual it would say nothing at all.
        initializer_factor=3.0,
    )
    return saved(T5ForConditionalGeneration, config, tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def t5(t5_dir: Path) -> Any:
    return make_task(TASK, t5_dir, COUNTED)


@pytest.fixture(params=["bart", "m2m100"])
def other_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Models of other kinds, with at most 20 positions; one of them cannot shift labels itself."""
    kinds: dict[str, tuple[Any, Any]] = {
        "bart": (BartForConditionalGeneration, BartConfig),
        "m2m100": (M2M100ForConditionalGeneration, M2M100Config),
    }
    kind, config = kinds[request.param]
    sizes = {f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")}
    sizes |= {f"{part}_layers": 1 for part in ("encoder", "decoder")}
    sizes |= {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "decoder_start_token_id": 1}
    made = config(**SIZE, **sizes, **tokens, forced_eos_token_id=1, max_position_embeddings=20)
    return saved(kind, made, tmp_path)


def test_the_loss_is_that_of_transformers(t5: Any, other_dir: Path) -> None:
    for task in (t5, make_task(TASK, other_dir, COUNTED)):
        batch = task.collate(encoded(task, COUNTED))

        found = loss_of(task, batch)

        names = ("input_ids", "attention_mask", "labels")
        with torch.no_grad():
            reference = task.model(**{name: batch[name] for name in names})
        assert found.weights.tolist() == [3, 2, 4, 5]
        mean = float(found.sums.sum() / found.weights.sum())
        assert mean == pytest.approx(float(reference.loss), abs=1e-5)


def test_the_loss_is_smoothed_as_torch_does(t5: Any) -> None:
    batch = t5.collate(encoded(t5, COUNTED))

    found = loss_of(t5, batch, label_smoothing=0.2)

    names = ("input_ids", "attention_mask", "decoder_input_ids")
    with torch.no_grad():
        logits = t5.model(**{name: batch[name] for name in names}).logits
    expected = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.2)
    assert float(found.sums.sum() / found.weights.sum()) == pytest.approx(float(expected), abs=1e-5)


def test_a_long_target_is_cut_and_has_no_end(t5: Any) -> None:
    (whole,) = encoded(t5, COUNTED[:1])
    (cut,) = encoded(t5, COUNTED[:1], longest=2)

    assert whole.target.token_ids[-1] == t5.tokenizer.eos_token_id
    assert not whole.is_truncated
    assert (cut.target.token_ids, cut.is_truncated) == (whole.target.token_ids[:2], True)
    assert cut.features["input_ids"][-1] == t5.tokenizer.eos_token_id
    assert (whole.cost, cut.cost) == (7, 4)


def test_no_more_goes_in_than_the_model_has_positions_for(other_dir: Path) -> None:
    task = make_task(TASK, other_dir, COUNTED)

    (example,) = encoded(task, [{"prompt": "one " * 50, "completion": "two " * 50}])

    assert (len(example.features["input_ids"]), len(example.target.token_ids)) == (20, 20)
    loss_of(task, task.collate([example]))
    text = answered(task, {"text": "one " * 50, "max_new_tokens": 400})["generated_text"]
    assert len(text.split()) <= 20


def test_answers_are_what_the_model_generates(t5: Any) -> None:
    text = "six five"
    inputs = t5.tokenizer(text, return_tensors="pt")

    for options in ({"max_new_tokens": 12}, {"max_new_tokens": 5, "num_beams": 3}):
        token_ids = t5.model.generate(**inputs, do_sample=False, **options)[0]
        expected = t5.tokenizer.decode(token_ids, skip_special_tokens=True)
        assert answered(t5, {"text": text, **options}) == {"generated_text": expected}
        assert expected


def test_each_input_is_answered_by_its_own_options(t5: Any) -> None:
    inputs: list[Any] = [
        {"text": "one two", "max_new_tokens": 8},
        {"text": "six", "max_new_tokens": 3},
        {"text": "six", "max_new_tokens": 8, "do_sample": True, "temperature": 2.0, "seed": 1},
        {"text": "six five four", "num_beams": 2, "max_new_tokens": 6},
        {"text": "six", "max_new_tokens": 8, "do_sample": True, "temperature": 2.0, "seed": 2},
        {"text": "one two", "max_new_tokens": 3},
    ]

    together = predicted(t5, [t5.encode_input(one) for one in inputs])

    assert together == [answered(t5, one)["generated_text"] for one in inputs]
    assert together[2] != together[4]
    assert len(together[1].split()) <= 3


def test_sampling_leaves_the_seeds_of_others_alone(t5: Any) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()

    answered(t5, {"text": "six", "max_new_tokens": 4, "do_sample": True, "top_p": 0.9})

    assert torch.equal(state, torch.get_rng_state())


def test_judging_is_bounded_by_the_target(t5: Any) -> None:
    examples = encoded(t5, COUNTED)

    together = predicted(t5, examples)

    assert together == [predicted(t5, [example])[0] for example in examples]
    for example, text in zip(examples, together, strict=True):
        assert len(text.split()) <= 2 * len(example.target.token_ids) + 8


def test_scores_and_worst_rows(t5: Any) -> None:
    examples = encoded(t5, COUNTED)
    held_out = judged(examples, ["four five", "four", "wrong", "six five four three"])

    found = values(t5.score(held_out))

    assert found["loss"] == pytest.approx((0 * 3 + 1 * 2 + 2 * 4 + 3 * 5) / 14)
    assert found["rouge1"] == pytest.approx(0.75)
    assert set(found) >= {"perplexity", "bleu", "chrf", "rouge2", "rougeL"}
    worst = t5.worst(held_out)[1]
    assert (worst.excerpt, worst.expected, worst.predicted) == ("six", "seven eight nine", "wrong")


@pytest.mark.parametrize("adapter", [AdapterSpec(), AdapterSpec("full")], ids=["lora", "full"])
def test_learns_by_heart(
    run_task: RunTask, storage: LocalStorage, t5_dir: Path, adapter: AdapterSpec
) -> None:
    spec = task_spec(
        storage,
        TASK,
        COUNTED * 16,
        COUNTED,
        adapter=adapter,
        num_epochs=3,
        batch_size=4,
        learning_rate=0.02,
    )

    attempt = run_task(spec, t5_dir)

    losses = validations(attempt, "loss")
    assert losses[-1] < losses[0] / 8
    if adapter.type == "full":
        assert validations(attempt, "rouge1")[-1] > 0.5


def test_joined_encoders_have_untrained_joints(find_model: FindModel) -> None:
    directory = find_model("minilm-encoder-decoder")
    task = make_task(TASK, directory, COUNTED)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = loss_of(task, task.collate(encoded(task, COUNTED)))

    assert len(task.head_modules) == 6
    assert all(name.endswith("crossattention") for name in task.head_modules)
    # An untrained one is worse than chance.
    assert float(found.sums.sum() / found.weights.sum()) > 9


def test_joined_encoders_learn(
    run_task: RunTask, storage: LocalStorage, find_model: FindModel
) -> None:
    spec = task_spec(
        storage, TASK, faq_completions(12), num_epochs=2, batch_size=3, max_length_tokens=12
    )

    attempt = run_task(spec, find_model("minilm-encoder-decoder"))

    losses = [one["train_loss"] for one in attempt.of_type("step")]
    assert sum(losses[-4:]) < sum(losses[:4]) - 4
    saved_names = adapter_names(storage.directory(attempt.last["prefix"]))
    assert any("crossattention" in name and "lora" not in name for name in saved_names)
    assert any("attention.self.query.lora_A" in name for name in saved_names)


@pytest.mark.slow
def test_joined_encoders_learn_slowly(
    run_task: RunTask, storage: LocalStorage, find_model: FindModel
) -> None:
    records = faq_completions(360)
    spec = task_spec(
        storage,
        TASK,
        records[:320],
        records[320:],
        num_epochs=4,
        batch_size=16,
        max_length_tokens=48,
    )

    attempt = run_task(spec, find_model("minilm-encoder-decoder"))

    losses = validations(attempt, "loss")
    assert losses[0] > 10
    assert losses[-1] < 7.0


def test_refuses_a_model_that_is_no_encoder_decoder(minilm: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be loaded for this task"):
        Text2TextGeneration(minilm, {}, CPU, None)


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (3, "inputs"),
        ("", "inputs"),
        ({"text": " "}, "inputs.text"),
        ({"num_beams": 2}, "inputs"),
        ({"text": "one", "num_beams": 0}, "inputs.num_beams"),
        ({"text": "one", "num_beams": 9}, "inputs.num_beams"),
        ({"text": "one", "max_new_tokens": 513}, "inputs.max_new_tokens"),
        ({"text": "one", "do_sample": True, "temperature": 0}, "inputs.temperature"),
        ({"text": "one", "do_sample": True, "top_p": 1.5}, "inputs.top_p"),
        ({"text": "one", "seed": 3}, "inputs"),
        ({"text": "one", "length_penalty": 2.0}, "inputs"),
    ],
)
def test_refuses_a_wrong_input(t5: Any, value: Any, param: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        t5.encode_input(value)

    assert refused.value.param == param


def test_refuses_any_parameter(t5: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        answered(t5, "one", num_beams=2)

    assert refused.value.param == "parameters"


def saved(kind: Any, config: Any, directory: Path) -> Path:
    """Write a model with random weights, and a tokenizer of a few words."""
    torch.manual_seed(2)
    kind(config).save_pretrained(directory)
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(directory)
    return directory


def adapter_names(directory: Path) -> list[str]:
    (path,) = directory.rglob("adapter_model.safetensors")
    with safe_open(path, "pt") as file:
        return list(file.keys())
