"""Windows: what each owns, where tokens stand, and passes of many of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForTokenClassification,
)

from worker.tasks.loading import load_tokenizer
from worker.tasks.windows import TOKENS_AT_A_TIME, longest_input, outputs_of, windows_of

TINY: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
}
TEXT = " ".join(f"word{number} unhappily" for number in range(40))


@pytest.fixture(scope="module")
def tokenizer(minilm: Path) -> Any:
    return load_tokenizer(minilm)


@pytest.mark.parametrize("before", [None, "Which word?"])
@pytest.mark.parametrize("overlap", [0, 1, 5, 8])
@pytest.mark.parametrize("longest", [16, 31, 64, 512])
def test_each_token_is_the_own_of_one_window(
    tokenizer: Any, longest: int, overlap: int, before: str | None
) -> None:
    windows = windows_of(tokenizer, TEXT, longest, overlap, before)

    own = [window.inputs["input_ids"][at] for window in windows for at in window.own]
    assert own == tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert all(len(window) <= longest for window in windows)
    for window in windows[1:-1]:
        assert window.own.start - window.text.start >= overlap // 2
        assert window.text.stop - window.own.stop >= overlap // 2
    for window in windows:
        for at in window.text:
            start, end = window.offsets[at]
            token = tokenizer.decode([window.inputs["input_ids"][at]]).removeprefix("##")
            assert TEXT[start:end] == token


def test_white_space_is_no_part_of_a_token() -> None:
    """Some tokenizers count it to the token that follows."""
    vocabulary = {"<pad>": 0, "Ġred": 1, "Ġcar": 2, "A": 3}
    inner = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")
    assert tokenizer("A red car", return_offsets_mapping=True)["offset_mapping"][1] == (1, 5)

    (window,) = windows_of(tokenizer, "A red car", 8, 2)

    assert window.offsets == [(0, 1), (2, 5), (6, 9)]


def test_many_windows_give_the_outputs_and_gradients_of_one_pass() -> None:
    """Of so many, activations are computed again for the backward pass, and not kept."""
    torch.manual_seed(0)
    model = BertForTokenClassification(BertConfig(**TINY, num_labels=3)).eval()
    num_windows = 2 * TOKENS_AT_A_TIME // 64 + 3
    batch = {"input_ids": torch.randint(100, (num_windows, 64))}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    passes: list[int] = []
    model.bert.embeddings.register_forward_hook(
        lambda module, inputs, output: passes.append(len(output))
    )
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    (found,) = outputs_of(model, batch, "logits")
    gradients = torch.autograd.grad(found.square().sum(), weights)

    assert passes[:3] == [TOKENS_AT_A_TIME // 64, TOKENS_AT_A_TIME // 64, 3]
    assert sorted(passes[3:]) == sorted(passes[:3])
    expected = model(**batch).logits
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        gradients, torch.autograd.grad(expected.square().sum(), weights), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_many_windows_are_computed_once_where_nothing_is_learnt(mode: Any) -> None:
    model = BertForTokenClassification(BertConfig(**TINY)).eval()
    passes: list[int] = []
    model.bert.embeddings.register_forward_hook(
        lambda module, inputs, output: passes.append(len(output))
    )
    batch = {"input_ids": torch.zeros((TOKENS_AT_A_TIME // 64 + 1, 64), dtype=torch.int64)}

    with mode():
        (found,) = outputs_of(model, batch, "logits")

    assert passes == [TOKENS_AT_A_TIME // 64, 1]
    assert found.shape == (TOKENS_AT_A_TIME // 64 + 1, 64, 2)


def test_few_windows_are_kept() -> None:
    model = BertForTokenClassification(BertConfig(**TINY)).eval()
    passes: list[int] = []
    model.bert.embeddings.register_forward_hook(
        lambda module, inputs, output: passes.append(len(output))
    )

    (found,) = outputs_of(model, {"input_ids": torch.zeros((40, 8), dtype=torch.int64)}, "logits")
    found.sum().backward()

    assert passes == [40]


def test_what_a_prompt_adds_is_left_out() -> None:
    """A learnt prompt stands before the tokens in the outputs, and is no token."""

    class Prompted(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
            prompt = torch.full((len(input_ids), 3), -1)
            return {"logits": torch.cat([prompt, input_ids], dim=1)[:, :, None]}

    input_ids = torch.arange(8).reshape(2, 4)

    (found,) = outputs_of(Prompted(), {"input_ids": input_ids}, "logits")

    assert torch.equal(found.squeeze(2), input_ids.float())


def test_the_longest_input_leaves_room_for_the_positions_of_padding(tokenizer: Any) -> None:
    bert = BertForTokenClassification(BertConfig(**TINY, max_position_embeddings=128))
    roberta = RobertaForTokenClassification(
        RobertaConfig(**TINY, max_position_embeddings=130, pad_token_id=1)
    )

    assert longest_input(bert, tokenizer) == 128
    assert longest_input(roberta, tokenizer) == 128
    roberta(torch.full((1, 128), 5))
    with pytest.raises(RuntimeError, match="out of bounds"):
        roberta(torch.full((1, 129), 5))
