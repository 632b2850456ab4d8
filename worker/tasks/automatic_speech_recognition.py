"""Speech recognition by Whisper: the transcript of a recording (https://arxiv.org/abs/2212.04356).

Only models of Whisper's kind are taken: those that spell with CTC need losses and alignments of
their own.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForSpeechSeq2Seq

from app.domain.datasets import Record, TranscribedAudioRecord
from app.domain.errors import InvalidInput
from app.domain.job_spec import JobSpec
from worker.evaluation import transcription
from worker.evaluation.measure import Scored
from worker.evaluation.worst_rows import WorstRow, worst_rows
from worker.tasks import Batch, Example, Judged, LossOptions, Outline, TaskLoss
from worker.tasks.loading import load_tokenizer, load_with_head, padded, refuse_own_code
from worker.tasks.media import decode_audio, media_bytes
from worker.tasks.requests import checked
from worker.tasks.whisper_prompts import TASK, Prompts
from worker.trunk.device import DeviceProfile

WHISPER = "whisper"

# Their transcripts have no space before a word, nor before the first one.
_WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
_IGNORED = -100
# What a transcript that is only judged may be longer than the true one: a model that repeats
# itself for ever is as wrong after twice the length.
_EXCESS_FACTOR, _EXCESS_TOKENS = 2, 8


class TranscriptionParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Parameters of a prediction: there are none."""


class AutomaticSpeechRecognition:
    """See `tasks.Task`. The data decide nothing of the model: the outline is empty.

    A transcript is learnt after the tokens that Whisper itself would put before it: the language
    that the model names in its `generation_config`, or else the one that it hears in the recording
    before training. A tuned model thus goes on telling languages apart.

    Examples hold recordings as they were encoded: they are decoded once to be checked, and again
    whenever a batch is made.
    """

    # Those of `peft` that have a word for it expect `input_ids`.
    peft_task_type = None
    is_batch_whole = False

    def __init__(
        self, directory: Path, outline: Outline, profile: DeviceProfile, spec: JobSpec | None
    ) -> None:
        _refuse_other_models(directory)
        self.model, self.head_modules = load_with_head(
            AutoModelForSpeechSeq2Seq, directory, profile
        )
        self.tokenizer = load_tokenizer(directory)
        self._extractor = _load_extractor(directory)
        config = self.model.config
        self._start_id: int = config.decoder_start_token_id
        self._end_id: int = config.eos_token_id
        self._longest: int = config.max_target_positions
        self._frames: int = config.max_source_positions
        self._prompts = Prompts.of(self.model.generation_config)

    @staticmethod
    def survey(records: Iterable[tuple[int, Record]]) -> dict[str, Any]:
        return {}

    def encode(self, record: Record, max_length_tokens: int) -> Example:
        assert isinstance(record, TranscribedAudioRecord)
        samples = self._samples(record.audio, "audio")
        target, is_truncated = self._target(record.text, samples, max_length_tokens)
        return self._example(record.audio, samples, target, record.text, is_truncated)

    def encode_input(self, value: Any) -> Example:
        content = media_bytes(value, "audio", "inputs")
        return self._example(content, self._samples(content, "inputs"))

    def collate(self, examples: Sequence[Example]) -> Batch:
        recordings = [self._samples(example.features["audio"], "audio") for example in examples]
        batch = self._input_features(recordings)
        if examples[0].target is not None:
            targets = [example.target for example in examples]
            batch["labels"] = padded(targets, _IGNORED)
            batch["decoder_input_ids"] = padded(
                [[self._start_id, *target[:-1]] for target in targets], self._end_id
            )
        return batch

    def loss(self, model: nn.Module, batch: Batch, options: LossOptions) -> TaskLoss:
        labels = batch["labels"]
        logits: Tensor = model(
            input_features=batch["input_features"].to(self.model.dtype),
            decoder_input_ids=batch["decoder_input_ids"],
        ).logits
        # In rows: down the columns of so large a vocabulary, float32 adds up less exactly.
        of_token = cross_entropy(
            logits.float().flatten(0, 1),
            labels.flatten(),
            ignore_index=_IGNORED,
            reduction="none",
            label_smoothing=options.label_smoothing,
        ).view_as(labels)
        return TaskLoss(of_token.sum(dim=1), (labels != _IGNORED).sum(dim=1).float())

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Return the likeliest transcript, token by token; batches with targets are cut short."""
        most = self._longest
        if "labels" in batch:
            most = min(most, batch["labels"].shape[1] * _EXCESS_FACTOR + _EXCESS_TOKENS)
        options = {"task": TASK} if self._prompts.languages else {}
        generate: Any = model.generate
        token_ids = generate(
            input_features=batch["input_features"].to(self.model.dtype),
            attention_mask=batch["attention_mask"],
            return_timestamps=False,
            do_sample=False,
            num_beams=1,
            # Whisper adds the tokens before the transcript to it, as far as there is room.
            max_length=most,
            **options,
        )
        texts: list[Any] = self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        return texts

    def answer(self, example: Example, prediction: Any, parameters: Mapping[str, Any]) -> Any:
        checked(TranscriptionParameters, parameters)
        return {"text": prediction}

    def score(self, judged: Judged) -> Scored:
        return transcription.score(
            [example.features["text"].strip() for example in judged.examples],
            [prediction.strip() for prediction in judged.predictions],
        )

    def worst(self, judged: Judged) -> tuple[WorstRow, ...]:
        return worst_rows(
            [example.line for example in judged.examples],
            judged.losses,
            [example.features["text"].strip() for example in judged.examples],
            [prediction.strip() for prediction in judged.predictions],
            [example.excerpt for example in judged.examples],
        )

    def _samples(self, content: bytes, field: str) -> Any:
        return decode_audio(
            content, self._extractor.sampling_rate, self._extractor.chunk_length, field
        )

    def _input_features(self, recordings: Sequence[Any]) -> dict[str, Tensor]:
        """Return `input_features` [recordings, mel bins, frames] float32, and `attention_mask`.

        Every recording is filled up to the length that Whisper hears.
        """
        return dict(
            self._extractor(
                list(recordings),
                sampling_rate=self._extractor.sampling_rate,
                return_tensors="pt",
                return_attention_mask=True,
            )
        )

    def _target(self, text: str, samples: Any, max_length_tokens: int) -> tuple[list[int], bool]:
        """Return the tokens to be predicted, and whether the transcript was cut.

        One that was cut has no end, or else the model would learn to stop there.
        """
        language = self._language(samples)
        prompt = self._prompts.of_language(language)
        start = "" if language in _WITHOUT_SPACES else " "
        # A transcript that spells a special token out does not get it.
        words = self.tokenizer(
            start + text.strip(), add_special_tokens=False, split_special_tokens=True
        )["input_ids"]
        room = min(max_length_tokens, self._longest) - len(prompt)
        if room < 2:
            raise InvalidInput(f"no transcript fits into {max_length_tokens} tokens")
        if len(words) + 1 > room:
            return [*prompt, *words[:room]], True
        return [*prompt, *words, self._end_id], False

    @torch.no_grad()
    def _language(self, samples: Any) -> str | None:
        """Return the code of the language; None of a model that knows only one."""
        prompts = self._prompts
        if not prompts.languages or prompts.named_language is not None:
            return prompts.named_language
        model: Any = self.model
        features = self._input_features([samples])["input_features"]
        features = features.to(self.model.device, self.model.dtype)
        heard = int(model.detect_language(input_features=features)[0])
        return next(code for code, token_id in prompts.languages.items() if token_id == heard)

    def _example(
        self,
        content: bytes,
        samples: Any,
        target: list[int] | None = None,
        text: str = "",
        is_truncated: bool = False,
    ) -> Example:
        seconds = len(samples) / self._extractor.sampling_rate
        return Example(
            features={"audio": content, "text": text},
            target=target,
            # The encoder sees as many frames of a short recording as of a long one.
            cost=self._frames + len(target or ()),
            excerpt=f"{seconds:.1f} seconds of sound",
            is_truncated=is_truncated,
        )


def _refuse_other_models(directory: Path) -> None:
    refuse_own_code(directory)
    try:
        config = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"the base model's configuration cannot be read: {error}") from error
    if config.model_type != WHISPER:
        raise InvalidInput(
            f"the base model is of the kind {config.model_type!r}: speech recognition is learnt by "
            f"models of the kind {WHISPER!r} only"
        )


def _load_extractor(directory: Path) -> Any:
    try:
        return AutoFeatureExtractor.from_pretrained(  # type: ignore[no-untyped-call]
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(
            f"the base model's feature extractor cannot be loaded: {error}"
        ) from error
