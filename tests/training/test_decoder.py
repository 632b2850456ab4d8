"""The fast forward pass: who has one, and adapters that are computed together as steps come."""

from pathlib import Path

import torch
from torch import Tensor, nn

from app.domain.job_spec import LoraSpec
from tests.training.conftest import CPU, random_adapter, random_sequences
from worker.training.manifest import BaseModelRef
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.loading import load_trunk
from worker.trunk.quicker import use_decoder
from worker.trunk.token_block import MOST_TOKENS, SPAN
from worker.trunk.trunk import Trunk

WIDE = LoraSpec(r=4, alpha=8)
NARROW = LoraSpec(r=2, alpha=8, target_modules=("q_proj", "down_proj"))
SPECS = {"a": WIDE, "b": WIDE, "c": WIDE, "d": WIDE, "n": NARROW, "m": NARROW}
# Who takes part in each step: adapters come, go, return, and have one row or several.
STEPS = ("abc", "abcd", "bcd", "bnd", "dmnba", "aabb", "abn", "cmc", "d", "dcba")
# More rows than are computed together, a few, and one.
LENGTHS = (1, 3, 20, 1, 1)


def rows_of(trunk: Trunk, names: str, token_ids: list[list[int]]) -> list[Tensor]:
    sequences = [SequenceRows(ids, name) for ids, name in zip(token_ids, names, strict=True)]
    batch = pack(sequences)
    with torch.inference_mode():
        hidden = trunk.hidden(batch)
    return [hidden[segment.start : segment.end] for segment in batch.segments]


def test_an_adapter_is_computed_alike_in_any_company(tiny_trunk: Trunk) -> None:
    adapters = {
        name: random_adapter(tiny_trunk, spec, seed)
        for seed, (name, spec) in enumerate(SPECS.items())
    }
    for name, adapter in adapters.items():
        tiny_trunk.attach(name, adapter)
    try:
        found = []
        for seed, names in enumerate(STEPS):
            sequences = random_sequences(
                *[(1, 3, 20, 1, 1)[i] for i in range(len(names))], seed=seed
            )
            found.append((names, sequences, rows_of(tiny_trunk, names, sequences)))
    finally:
        for name in adapters:
            tiny_trunk.detach(name)

    for name, adapter in adapters.items():
        tiny_trunk.attach(name, adapter)
        try:
            for names, sequences, rows in found:
                for other, ids, together in zip(names, sequences, rows, strict=True):
                    if other == name:
                        (alone,) = rows_of(tiny_trunk, name, [ids])
                        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
        finally:
            tiny_trunk.detach(name)


def test_weights_that_change_are_seen_in_the_next_step(tiny_trunk: Trunk) -> None:
    adapter = random_adapter(tiny_trunk, WIDE, seed=1)
    ids = random_sequences(1, 1)
    tiny_trunk.attach("a", adapter)
    tiny_trunk.attach("b", random_adapter(tiny_trunk, WIDE, seed=2))
    try:
        before = rows_of(tiny_trunk, "ab", ids)
        for pair in adapter.weights.values():
            pair.b.mul_(3)
        after = rows_of(tiny_trunk, "ab", ids)
    finally:
        tiny_trunk.detach("a")
        tiny_trunk.detach("b")

    assert not torch.allclose(before[0], after[0], atol=1e-4)
    torch.testing.assert_close(before[1], after[1])


def test_token_by_token_comes_to_the_same_at_any_length(tiny_trunk: Trunk) -> None:
    """Short sequences are attended to in one call, longer ones each by itself."""
    ids = random_sequences(MOST_TOKENS + 10, MOST_TOKENS - SPAN + 10)
    begun = [MOST_TOKENS - 30, MOST_TOKENS - SPAN - 30]
    assert tiny_trunk.decoder is not None
    with torch.inference_mode():
        whole = [tiny_trunk.hidden(pack([SequenceRows(one)])) for one in ids]
        caches = [tiny_trunk.new_cache() for _ in ids]
        for one, length, cache in zip(ids, begun, caches, strict=True):
            tiny_trunk.hidden(pack([SequenceRows(one[:length], None, cache)]))
        for step in range(40):
            tokens = [
                SequenceRows([one[length + step]], None, cache)
                for one, length, cache in zip(ids, begun, caches, strict=True)
            ]
            found = tiny_trunk.hidden(pack(tokens))
            expected = [rows[length + step] for rows, length in zip(whole, begun, strict=True)]
            torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_a_model_that_computes_something_else_keeps_its_own_way(tiny_base: BaseModelRef) -> None:
    trunk = load_trunk(Path(tiny_base.directory), CPU)
    assert use_decoder(trunk)
    other = Trunk(trunk.model, trunk.tokenizer, trunk.directory)
    trunk.model.get_submodule("model.layers.1.mlp").act_fn = nn.GELU()

    assert not use_decoder(other)
