"""Sequences side by side, of which each attends to its own past alone."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from worker.trunk.cache import SequenceCache
from worker.trunk.token_block import MOST_TOKENS, Token, TokenBlock

LAYERS, HEADS, KV_HEADS, WIDTH = 2, 6, 2, 16
LIKE = torch.empty(WIDTH)
# Sequences by name, and how long each is when it joins.
LENGTHS = {"a": 1, "b": 15, "c": 16, "d": 64, "e": 150, "f": 235}
# Who goes on in each step, by row of the batch: they come, go, return and change rows.
STEPS = ("a", "ab", "cab", "abc", "de", "fedcba", "fda", "afd", "e", "eabf", "f", "bcde", "a")


@dataclass
class Sequence:
    """A sequence with keys and values of its own, and what it should see."""

    cache: SequenceCache
    random: torch.Generator
    seen: list[Tensor] = field(default_factory=list)

    def draw(self, heads: int) -> Tensor:
        """Return rows of one token in every layer, [layers, heads, width]."""
        return torch.randn(LAYERS, heads, WIDTH, generator=self.random)


def sequence(length: int, seed: int) -> Sequence:
    cache = SequenceCache(LAYERS)
    random = torch.Generator().manual_seed(seed)
    for layer_idx in range(LAYERS):
        keys, values = torch.randn(2, 1, KV_HEADS, length, WIDTH, generator=random)
        cache.append(layer_idx, keys, values)
    return Sequence(cache, random)


def go_on(block: TokenBlock, sequences: list[Sequence], num_rows: int | None = None) -> None:
    """Let sequences go on by a token; their rows are the last of the batch."""
    num_rows = num_rows or len(sequences)
    first = num_rows - len(sequences)
    drawn = [[one.draw(heads) for heads in (HEADS, KV_HEADS, KV_HEADS)] for one in sequences]
    tokens = [Token(first + index, one.cache) for index, one in enumerate(sequences)]
    step = block.begin(tokens, num_rows, LIKE)
    assert step is not None
    attended = []
    for layer_idx in range(LAYERS):
        others = [torch.full((first, heads, WIDTH), torch.nan) for heads in (HEADS, KV_HEADS)]
        query, key, value = (
            torch.cat((others[side > 0], *(rows[side][layer_idx][None] for rows in drawn)))
            for side in range(3)
        )
        rows = torch.empty(num_rows, HEADS * WIDTH)
        rows[step.rows] = step.attend(layer_idx, query, key, value, 0.3)
        attended.append(rows[first:])
    step.end()
    for one, seen in zip(sequences, torch.stack(attended, dim=1).unbind(0), strict=True):
        one.seen.append(seen)


@torch.no_grad()
def test_a_sequence_sees_the_same_in_any_company_to_the_last_bit() -> None:
    together = {name: sequence(n, n) for name, n in LENGTHS.items()}
    block = TokenBlock(LAYERS, KV_HEADS)
    for index, names in enumerate(STEPS):
        go_on(block, [together[name] for name in names], len(names) + index % 3)

    for name, length in LENGTHS.items():
        alone, own_block = sequence(length, length), TokenBlock(LAYERS, KV_HEADS)
        for _ in range(sum(name in names for names in STEPS)):
            go_on(own_block, [alone])
        assert torch.equal(torch.stack(together[name].seen), torch.stack(alone.seen))
        assert together[name].cache.length == length + len(alone.seen)


@torch.no_grad()
def test_a_sequence_sees_what_its_own_cache_then_holds() -> None:
    block = TokenBlock(LAYERS, KV_HEADS)
    ones = [sequence(MOST_TOKENS - 2, 1), sequence(5, 2)]
    queries = []
    for one in ones:
        state = one.random.get_state()
        queries.append(one.draw(HEADS))
        one.random.set_state(state)
    go_on(block, ones)
    for one, query in zip(ones, queries, strict=True):
        keys, values = one.cache.held(LIKE.expand(KV_HEADS, WIDTH)).unbind(0)
        expected = scaled_dot_product_attention(
            query[:, :, None], keys, values, scale=0.3, enable_gqa=True
        )
        torch.testing.assert_close(one.seen[0], expected.flatten(1))


@torch.no_grad()
@pytest.mark.parametrize("ends", [True, False])
def test_what_was_in_a_place_before_reaches_nobody(ends: bool) -> None:
    """A model of someone else may compute what is no number."""
    block = TokenBlock(LAYERS, KV_HEADS)
    broken, healthy = sequence(60, 1), sequence(3, 2)
    for one in broken.cache.held(LIKE.expand(KV_HEADS, WIDTH)):
        one.fill_(torch.nan)
    go_on(block, [broken])
    assert broken.seen[0].isnan().all()
    if ends:
        del broken
        go_on(block, [healthy])
    else:
        go_on(block, [healthy, broken])
    assert healthy.seen[0].isfinite().all()


@torch.no_grad()
def test_what_others_wrote_to_a_cache_is_read_anew() -> None:
    block = TokenBlock(LAYERS, KV_HEADS)
    one, same = sequence(20, 1), sequence(10, 1)
    go_on(block, [one])
    other = sequence(10, 1)
    one.cache.truncate(0)
    for layer_idx in range(LAYERS):
        keys, values = other.cache.held(LIKE.expand(KV_HEADS, WIDTH))[:, layer_idx, None].unbind(0)
        one.cache.append(layer_idx, keys, values)
    one.seen.clear()
    one.random.manual_seed(5)
    same.random.manual_seed(5)
    go_on(block, [one])
    go_on(TokenBlock(LAYERS, KV_HEADS), [same])
    assert torch.equal(one.seen[0], same.seen[0])


def test_what_takes_too_much_memory_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.trunk.token_block._MOST_BYTES", 1 << 18)
    block = TokenBlock(LAYERS, KV_HEADS)
    few = [Token(0, sequence(20, 1).cache)]
    assert block.begin(few, 1, LIKE) is not None
    some = [Token(row, sequence(20, row).cache) for row in range(8)]
    assert block.begin(some, 8, LIKE) is not None
    many = [Token(row, sequence(100, row).cache) for row in range(16)]
    assert block.begin(many, 16, LIKE) is None
    # There is room for one that is longer, though not for eight that are.
    assert block.begin([Token(0, sequence(100, 1).cache)], 1, LIKE) is not None
