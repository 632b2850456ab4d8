"""The key/value memory of one sequence: what a copy holds, and what a token takes."""

import pytest
import torch

from app.domain.errors import InvalidInput
from tests.training.conftest import random_sequences
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.cache import SequenceCache
from worker.trunk.prompt import PromptAdapter
from worker.trunk.trunk import Trunk

(PROMPT,) = random_sequences(9)


def read(trunk: Trunk, token_ids: list[int], cache: SequenceCache) -> torch.Tensor:
    with torch.no_grad():
        return trunk.hidden(pack([SequenceRows(token_ids, None, cache)]))


def test_a_copy_of_a_prefix_goes_on_as_the_prefix_does(tiny_trunk: Trunk) -> None:
    whole, prefix = tiny_trunk.new_cache(), tiny_trunk.new_cache()
    read(tiny_trunk, PROMPT, whole)
    read(tiny_trunk, PROMPT[:6], prefix)

    copied = whole.copy(capacity=4, length=6)

    assert (copied.length, whole.length) == (6, len(PROMPT))
    found, expected = read(tiny_trunk, [7, 8], copied), read(tiny_trunk, [7, 8], prefix)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert whole.length == len(PROMPT), "what is appended to a copy is not in the original"


def test_a_copy_is_never_longer_than_what_was_held(tiny_trunk: Trunk) -> None:
    cache = tiny_trunk.new_cache()
    read(tiny_trunk, PROMPT, cache)

    assert cache.copy(length=100).length == len(PROMPT)


def test_a_token_takes_a_key_and_a_value_in_every_layer(tiny_trunk: Trunk) -> None:
    config = tiny_trunk.model.config
    width = config.hidden_size // config.num_attention_heads * config.num_key_value_heads

    assert tiny_trunk.cache_bytes_per_token == 2 * config.num_hidden_layers * width * 4


@pytest.mark.parametrize(
    ("layers", "heads", "width"), [(1, 2, 8), (3, 2, 8), (2, 1, 8), (2, 2, 1), (2, 4, 8)]
)
def test_a_learnt_prompt_of_another_shape_is_refused(
    tiny_trunk: Trunk, layers: int, heads: int, width: int
) -> None:
    def prompt(layers: int, heads: int, width: int) -> PromptAdapter:
        one = torch.ones(1, heads, 3, width)
        return PromptAdapter(past=[(one, one)] * layers)

    tiny_trunk.attach_prompt("fits", prompt(2, 2, 8))
    tiny_trunk.detach("fits")
    with pytest.raises(InvalidInput, match="another shape"):
        tiny_trunk.attach_prompt("other", prompt(layers, heads, width))
    assert tiny_trunk.adapters == ()
