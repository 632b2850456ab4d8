"""Speech: Whisper's tokens, the loss, transcripts as the pipeline gives them, what is learnt."""

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn
from transformers import (
    AutomaticSpeechRecognitionPipeline,
    Wav2Vec2Config,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from app.domain.errors import InvalidInput, TrainingFailed
from app.domain.job_spec import AdapterSpec
from app.storage.local import LocalStorage
from tests.support.datasets import as_zip, spoken
from tests.tasks.conftest import (
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
from tests.tasks.test_resuming import files_below
from worker.evaluation.measure import values
from worker.tasks import LossOptions
from worker.tuning import named_weights
from worker.tuning.making import make_tuning

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TASK = "automatic-speech-recognition"
RATE = 16_000
LONGEST = 40

MakeTiny = Callable[..., Path]


def sound(seconds: float = 1.0, pitch: float = 200.0) -> str:
    """Return something between a tone and noise, as a data URL."""
    times = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(int(pitch)).normal(0, 0.1, len(times))
    file = io.BytesIO()
    soundfile.write(file, np.sin(2 * np.pi * pitch * times) * 0.3 + noise, RATE, format="WAV")
    return f"data:audio/wav;base64,{base64.b64encode(file.getvalue()).decode()}"


FIRST = {"audio": sound(), "text": "What is that noise?"}
SECOND = {"audio": sound(0.5, 900.0), "text": "Nothing."}


@pytest.fixture(scope="module")
def whisper_dir(find_model: FindModel) -> Path:
    return find_model("whisper-base")


@pytest.fixture(scope="module")
def make_tiny(whisper_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeTiny:
    """Return a model that knows nothing but Whisper's tokens, with other settings or without."""

    def make(**generation: Any) -> Path:
        directory = tmp_path_factory.mktemp("whisper")
        torch.manual_seed(0)
        sizes = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
        sizes["max_target_positions"] = LONGEST
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        config = WhisperConfig.from_pretrained(
            whisper_dir, encoder_layers=1, decoder_layers=1, dtype="float32", **sizes, **heads
        )
        WhisperForConditionalGeneration(config).save_pretrained(directory)
        for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
            shutil.copy(whisper_dir / name, directory)
        settings = json.loads((whisper_dir / "generation_config.json").read_text())
        settings |= {"max_length": LONGEST, **generation}
        known = {name: value for name, value in settings.items() if value is not None}
        (directory / "generation_config.json").write_text(json.dumps(known))
        return directory

    return make


@pytest.fixture(scope="module")
def tiny_dir(make_tiny: MakeTiny) -> Path:
    return make_tiny()


@pytest.fixture(scope="module")
def tiny(tiny_dir: Path) -> Any:
    return make_task(TASK, tiny_dir, [FIRST])


@pytest.fixture(scope="module")
def whisper(whisper_dir: Path) -> Any:
    return make_task(TASK, whisper_dir, [FIRST])


def pipeline_of(task: Any) -> Any:
    kind: Any = AutomaticSpeechRecognitionPipeline
    return kind(
        model=task.model, tokenizer=task.tokenizer, feature_extractor=task._extractor, device=-1
    )


def samples_of(record: dict[str, Any]) -> Any:
    content = base64.b64decode(record["audio"].partition(",")[2])
    return soundfile.read(io.BytesIO(content), dtype="float32")[0]


@torch.no_grad()
def predicted_by(task: Any, model: nn.Module) -> list[str]:
    found: list[str] = task.predict(model, task.collate([task.encode_input(FIRST["audio"])]))
    return found


@pytest.mark.parametrize("model", [pytest.param("whisper", marks=pytest.mark.slow), "tiny"])
def test_answers_are_those_of_the_pipeline(model: str, request: pytest.FixtureRequest) -> None:
    """Greedy ones: it would follow five beams by default. The tiny model differs at each turn."""
    task = request.getfixturevalue(model)

    found = answered(task, FIRST["audio"])

    assert found == pipeline_of(task)(samples_of(FIRST), generate_kwargs={"num_beams": 1})
    assert found["text"].strip()


def test_several_are_transcribed_as_each_by_itself(tiny: Any) -> None:
    examples = [tiny.encode_input(one["audio"]) for one in (FIRST, SECOND)]

    together = predicted(tiny, examples)

    assert together == [predicted(tiny, [example])[0] for example in examples]
    assert together[0]


def test_the_loss_is_that_of_transformers(tiny: Any) -> None:
    batch = tiny.collate(encoded(tiny, [FIRST, SECOND]))

    found = loss_of(tiny, batch)

    with torch.no_grad():
        expected = tiny.model(input_features=batch["input_features"], labels=batch["labels"]).loss
    assert float(found.sums.sum() / found.weights.sum()) == pytest.approx(float(expected), rel=1e-6)
    assert found.weights.tolist() == [9.0, 6.0]


def test_the_loss_is_smoothed_as_torch_does(tiny: Any) -> None:
    batch = tiny.collate(encoded(tiny, [FIRST]))

    found = loss_of(tiny, batch, label_smoothing=0.1)

    with torch.no_grad():
        logits = tiny.model(input_features=batch["input_features"], labels=batch["labels"]).logits
    expected = nn.CrossEntropyLoss(label_smoothing=0.1)(logits[0], batch["labels"][0])
    assert float(found.sums.sum() / found.weights.sum()) == pytest.approx(float(expected), rel=1e-5)


def test_a_transcript_has_the_tokens_that_whisper_gives_it(make_tiny: MakeTiny) -> None:
    """No space is before a Chinese one; a special token that is spelt out is a mere text."""
    expected = {
        "en": ("<|en|>", "<|transcribe|>", "<|notimestamps|>", " What"),
        "french": ("<|fr|>", "<|transcribe|>", "<|notimestamps|>", " What"),
        "<|zh|>": ("<|zh|>", "<|transcribe|>", "<|notimestamps|>", "What"),
    }
    for language, start in expected.items():
        task = make_task(TASK, make_tiny(language=language), [FIRST])
        (example,) = encoded(task, [FIRST])
        assert task.tokenizer.decode(example.target[:4]) == "".join(start)
        assert task.tokenizer.decode(example.target[3:]).strip() == FIRST["text"] + "<|endoftext|>"
        batch = task.collate([example])
        assert batch["decoder_input_ids"][0].tolist() == [50258, *example.target[:-1]]

    trick = {**FIRST, "text": "<|endoftext|><|fr|>"}
    (example,) = encoded(task, [trick])
    assert example.target.count(50257) == 1
    assert task.tokenizer.decode(example.target[3:-1]) == trick["text"]


def test_a_model_of_english_alone_has_no_language(make_tiny: MakeTiny) -> None:
    task = make_task(TASK, make_tiny(is_multilingual=False), [FIRST])
    (example,) = encoded(task, [FIRST])

    assert task.tokenizer.decode(example.target[:2]) == "<|notimestamps|> What"
    expected = pipeline_of(task)(samples_of(FIRST), generate_kwargs={"num_beams": 1})
    assert answered(task, FIRST["audio"]) == expected


def test_a_long_transcript_is_cut_and_has_no_end(tiny: Any) -> None:
    long = {**FIRST, "text": "What is that noise? " * 20}

    (example,) = encoded(tiny, [long], longest=12)
    (longest,) = encoded(tiny, [{**FIRST, "text": "noise " * 1_000}], longest=10_000)

    assert len(example.target) == 12
    assert example.is_truncated
    assert 50257 not in example.target
    assert len(longest.target) == LONGEST
    assert not encoded(tiny, [FIRST])[0].is_truncated
    with pytest.raises(InvalidInput, match="no transcript fits into 4 tokens"):
        encoded(tiny, [FIRST], longest=4)


class Counting(nn.Module):
    """A model that remembers what it was asked for, and how many tokens it generated."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.num_tokens = 0
        self.options: dict[str, Any] = {}

    def generate(self, **options: Any) -> Any:
        found = self.model.generate(**options)
        self.num_tokens = found.shape[1]
        self.options = options
        return found


def test_judging_is_bounded_by_the_transcript(tiny: Any) -> None:
    """A model that knows nothing goes on and on: to Whisper's limit, unless it is only judged."""
    counting = Counting(tiny.model)

    with torch.no_grad():
        tiny.predict(counting, tiny.collate([tiny.encode_input(SECOND["audio"])]))
        asked = counting.num_tokens
        tiny.predict(counting, tiny.collate(encoded(tiny, [SECOND])))

    assert asked == LONGEST - 4
    assert counting.num_tokens == 2 * 6 + 8


def test_a_model_that_is_set_to_translate_transcribes(make_tiny: MakeTiny) -> None:
    task = make_task(TASK, make_tiny(task="translate", language="de"), [FIRST])
    counting = Counting(task.model)
    (example,) = encoded(task, [FIRST])

    task.predict(counting, task.collate([example]))

    assert counting.options["task"] == "transcribe"
    assert task.tokenizer.decode(example.target[:2]) == "<|de|><|transcribe|>"


def test_costs_what_the_encoder_sees(tiny: Any) -> None:
    (example,) = encoded(tiny, [FIRST])

    assert example.cost == 1_500 + 9
    assert example.excerpt == "1.0 seconds of sound"
    assert tiny.encode_input(FIRST["audio"]).cost == 1_500
    assert example.features["audio"].startswith(b"RIFF")


def test_scores_and_worst_rows(tiny: Any) -> None:
    examples = encoded(tiny, [FIRST, SECOND])
    predictions = [" What is a noise?", " Nothing."]

    found = values(tiny.score(judged(examples, predictions)))
    rows = tiny.worst(judged(examples, predictions))

    assert found["wer"] == pytest.approx(1 / 5)
    assert {(one.expected, one.predicted) for one in rows} == {
        ("What is that noise?", "What is a noise?"),
        ("Nothing.", "Nothing."),
    }


def test_learns_two_recordings_by_heart(
    run_task: RunTask, storage: LocalStorage, tiny_dir: Path
) -> None:
    records = [FIRST, SECOND]
    spec = task_spec(
        storage,
        TASK,
        as_zip(records * 10, "audio"),
        records,
        adapter=AdapterSpec(type="full"),
        num_epochs=3,
        batch_size=2,
        learning_rate=1e-2,
    )

    attempt = run_task(spec, tiny_dir)

    losses, rates = validations(attempt, "loss"), validations(attempt, "wer")
    assert losses[0] > 9
    assert losses[-1] < 4, rates
    assert rates[-1] < rates[0], rates


def test_an_adapter_changes_all_layers_but_the_last(storage: LocalStorage, tiny_dir: Path) -> None:
    """Attention alone would save a tenth of the time."""
    task = make_task(TASK, tiny_dir, [FIRST])
    tuning = make_tuning(task_spec(storage, TASK, [FIRST]), task, 1)
    weights = dict(named_weights(tuning.groups()))

    batch = task.collate(encoded(task, [FIRST]))
    task.loss(tuning.model, batch, LossOptions()).sums.sum().backward()

    assert task.head_modules == ()
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in weights} == {
        "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"
    }  # fmt: skip
    assert {name.split(".layers.")[0].rpartition(".")[2] for name in weights} == {
        "encoder", "decoder"
    }  # fmt: skip
    assert all(weight.grad is not None for weight in weights.values())
    assert predicted_by(task, tuning.model) == predicted_by(task, task.model)


def test_a_resumed_run_equals_an_uninterrupted_one(
    run_task: RunTask, storage: LocalStorage, tiny_dir: Path
) -> None:
    spec = task_spec(storage, TASK, [FIRST, SECOND], num_epochs=2, batch_size=1)
    whole = run_task(spec, tiny_dir)
    first = run_task(spec, tiny_dir, lease=2, answers={("step", 1): "stop"})

    second = run_task(spec, tiny_dir, lease=3, resume_from=first.last["prefix"])

    assert (first.last["type"], first.last["step"]) == ("stopped", 1)
    assert files_below(storage.directory(second.last["prefix"])) == files_below(
        storage.directory(whole.last["prefix"])
    )


def test_hears_the_language_that_is_spoken(whisper: Any) -> None:
    (example,) = encoded(whisper, spoken(1, ["Where is the nearest railway station?"]))

    assert whisper.tokenizer.decode(example.target[:1]) == "<|en|>"
    (text,) = predicted(whisper, [example])
    assert "station" in text


@pytest.mark.slow
def test_learns_to_understand_robots(
    run_task: RunTask, storage: LocalStorage, whisper_dir: Path
) -> None:
    records = spoken(60)
    spec = task_spec(
        storage,
        TASK,
        records[:48],
        records[48:],
        adapter=AdapterSpec(options={"r": 8}),
        num_epochs=2,
        max_length_tokens=448,
    )

    before, *_, after = validations(run_task(spec, whisper_dir), "wer")

    assert after < 0.7 * before


@pytest.mark.parametrize(
    ("seconds", "message"), [(0.0, "0 seconds long"), (31.0, "31.0 seconds long; at most 30")]
)
def test_a_wrong_recording_is_named_by_its_line(
    run_task: RunTask, storage: LocalStorage, tiny_dir: Path, seconds: float, message: str
) -> None:
    wrong = {"audio": sound(seconds), "text": "Silence."}

    with pytest.raises(TrainingFailed, match=f"line 2: the recording is {message}") as error:
        run_task(task_spec(storage, TASK, [FIRST, wrong]), tiny_dir)
    assert error.value.param == "training_file"


def test_refuses_a_wrong_input(tiny: Any) -> None:
    for value in ("https://example.org/a.wav", base64.b64encode(b"no sound").decode(), sound(31)):
        with pytest.raises(InvalidInput) as error:
            tiny.encode_input(value)
        assert error.value.param == "inputs"


def test_refuses_any_parameter(tiny: Any) -> None:
    with pytest.raises(InvalidInput) as error:
        tiny.answer(tiny.encode_input(SECOND["audio"]), " Nothing.", {"language": "en"})
    assert error.value.param == "parameters"


def test_refuses_models_of_other_kinds(tmp_path: Path) -> None:
    Wav2Vec2Config().save_pretrained(tmp_path)

    with pytest.raises(InvalidInput, match="'wav2vec2': speech recognition is learnt by models of"):
        make_task(TASK, tmp_path, [FIRST])


@pytest.mark.parametrize(
    ("generation", "missing"),
    [
        ({"no_timestamps_token_id": None}, "no_timestamps_token_id"),
        ({"lang_to_id": None}, "lang_to_id"),
        ({"language": "klingon"}, "'klingon'"),
    ],
)
def test_refuses_a_model_that_lacks_tokens(
    make_tiny: MakeTiny, generation: dict[str, Any], missing: str
) -> None:
    with pytest.raises(
        InvalidInput, match=rf"generation_config\.json does not tell of .*{missing}"
    ):
        make_task(TASK, make_tiny(**generation), [FIRST])
