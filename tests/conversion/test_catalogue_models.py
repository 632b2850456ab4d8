"""What the default catalogue brings is what it says: each model loads and knows something."""

import io
import wave
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
)

from tests.support.datasets import spoken

DirectoryOf = Callable[[str], Path]

# Classes of ImageNet.
PALACE, DAISY = 698, 985
WHISPER_RATE = 16_000


def test_smollm2_knows_a_capital(directory_of: DirectoryOf) -> None:
    directory = directory_of("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        likeliest = model(**tokens).logits[0, -1].argmax()
    assert tokenizer.decode([int(likeliest)]) == " Paris"


def test_minilm_knows_what_means_the_same(directory_of: DirectoryOf) -> None:
    directory = directory_of("all-minilm-l6-v2")
    assert (directory / "tokenizer.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory)
    texts = ["I want my money back", "Please refund my order", "The parcel is late"]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    means = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    likeness = (means[0] @ means[1:].T).tolist()
    assert likeness == pytest.approx([0.56, 0.13], abs=0.01)  # As sentence-transformers has it.


def test_efficientnet_knows_a_palace_and_a_daisy(directory_of: DirectoryOf) -> None:
    directory = directory_of("efficientnet-lite0")
    images = [Image.fromarray(image) for image in load_sample_images().images]
    pixels = AutoImageProcessor.from_pretrained(directory)(images, return_tensors="pt")
    model = AutoModelForImageClassification.from_pretrained(directory).eval()
    with torch.no_grad():
        chances = model(**pixels).logits.softmax(-1)
    assert chances.argmax(-1).tolist() == [PALACE, DAISY]
    # With the scaling of other ImageNet models it is at a loss about the flower: 0.13.
    assert chances.amax(-1).min() > 0.25


def test_efficientnet_has_gates_that_change_nothing(directory_of: DirectoryOf) -> None:
    model = AutoModelForImageClassification.from_pretrained(directory_of("efficientnet-lite0"))
    gates = [one for name, one in model.named_modules() if name.endswith("squeeze_excite")]
    assert len(gates) == 16
    for gate in gates:
        values = torch.randn(2, gate.dim, 5, 5) * 6
        with torch.no_grad():
            assert torch.equal(gate(values), values)


@pytest.mark.slow  # 150 MB to fetch.
def test_whisper_understands_what_is_said(directory_of: DirectoryOf) -> None:
    directory = directory_of("whisper-base")
    processor = AutoProcessor.from_pretrained(directory)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(directory, dtype=torch.float32)
    text = "The parcel will be delivered on Monday morning."
    (record,) = spoken(1, [text])
    features = processor(
        _samples(record["audio"]), sampling_rate=WHISPER_RATE, return_tensors="pt"
    ).input_features
    heard = model.generate(features, max_new_tokens=20)
    assert processor.batch_decode(heard, skip_special_tokens=True)[0].strip() == text


@pytest.mark.slow  # 84 MB to fetch, for what the tests of the converter show with a tiny one.
def test_the_encoder_decoder_learns_one_pair(directory_of: DirectoryOf) -> None:
    directory = directory_of("minilm-encoder-decoder")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSeq2SeqLM.from_pretrained(directory)
    source = tokenizer("How is radon measured?", return_tensors="pt")
    target = tokenizer("with a track - film detector", return_tensors="pt").input_ids
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=5e-4)
    for _ in range(40):
        # The target without its [CLS] follows the decoder's start token, which is [CLS].
        logits = model(**source, decoder_input_ids=target[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits[0], target[0, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    written = model.eval().generate(**source)
    assert tokenizer.decode(written[0], skip_special_tokens=True) == "with a track - film detector"


def _samples(url: str) -> np.ndarray:
    with wave.open(io.BytesIO(b64decode(url.partition(",")[2]))) as file:
        rate, frames = file.getframerate(), file.readframes(file.getnframes())
    samples = np.frombuffer(frames, dtype="<i2") / 32_768
    times = np.arange(0, len(samples), rate / WHISPER_RATE)
    return np.interp(times, np.arange(len(samples)), samples)
