"""Grammars: what they leave possible at each step, and which schemas they are not made of."""

import json
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from app.domain.errors import InvalidInput
from worker.generation.generate import generate
from worker.generation.grammar import Grammar, GrammarCompiler, json_schema_grammar, lark_grammar
from worker.generation.request import GenerationFailed, GenerationRequest
from worker.generation.sampling import Sampler, SamplingParameters
from worker.generation.sequence import SequenceState
from worker.generation.step import run_step
from worker.generation.vocabulary import Vocabulary
from worker.trunk.trunk import Trunk

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def _object_with(name: str) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"type": "integer"}}, "required": [name]}


@pytest.fixture(scope="module")
def compiler(trunk: Trunk, vocabulary: Vocabulary) -> GrammarCompiler:
    return GrammarCompiler(vocabulary, int(trunk.head_weight.shape[0]))


def request(trunk: Trunk, **sampling: Any) -> GenerationRequest:
    prompt = tuple(trunk.tokenizer.encode("Anna is a nurse of 31 years."))
    return GenerationRequest(prompt, 64, sampling=SamplingParameters(**sampling))


def test_what_is_drawn_follows_the_schema_and_harms_no_neighbour(
    trunk: Trunk, vocabulary: Vocabulary, compiler: GrammarCompiler
) -> None:
    grammar = compiler.compile(json_schema_grammar(PERSON), "response_format")
    drawn = [
        request(trunk, temperature=1.0, seed=seed, top_p=0.9, grammar=grammar) for seed in (1, 2, 3)
    ]
    free = request(trunk, temperature=0.0)
    *answers, neighbour = generate(trunk, vocabulary, [*drawn, free])
    for answer in answers:
        person = json.loads(answer.text)
        assert answer.finish_reason == "stop"
        assert person.keys() == {"name", "age"}
        assert isinstance(person["age"], int)
    assert neighbour == generate(trunk, vocabulary, [free])[0]
    assert generate(trunk, vocabulary, drawn) == answers


@torch.no_grad()
def test_a_sequence_whose_cache_is_dropped_keeps_its_place(
    trunk: Trunk, vocabulary: Vocabulary, compiler: GrammarCompiler
) -> None:
    grammar = compiler.compile(json_schema_grammar(PERSON), "response_format")
    asked = request(trunk, temperature=1.0, seed=5, grammar=grammar)

    def written(drops_at: int) -> list[int]:
        sequence = SequenceState(asked, 0, None, vocabulary)
        sequence.open(trunk.new_cache(), 0)
        reason = None
        while reason is None:
            if sequence.generated_tokens == drops_at and not sequence.is_in_prompt:
                sequence.close()
                sequence.open(trunk.new_cache(), 0)
            ((_, piece),) = run_step(trunk, [sequence.share(64)])
            assert not isinstance(piece, GenerationFailed)
            reason = piece and piece.finish_reason
        return sequence.sampled_ids

    assert written(drops_at=4) == written(drops_at=-1)


def test_the_end_is_possible_only_where_the_answer_is_whole(
    vocabulary: Vocabulary, compiler: GrammarCompiler
) -> None:
    grammar = compiler.compile(lark_grammar('start: "yes" | "yes, sir"'), "tools")
    state, size = grammar.follow(), len(vocabulary.tokenizer)
    (end,) = vocabulary.end_token_ids

    def possible() -> set[str]:
        logits = state.restrict(torch.zeros(size))
        return {"END" if i == end else vocabulary.text_of(i) for i in _finite(logits)}

    assert "END" not in possible()
    state.accept(vocabulary.tokenizer.convert_tokens_to_ids("yes"))
    assert possible() == {"END", ","}
    other = grammar.follow()
    assert end not in _finite(other.restrict(torch.zeros(size)))


def test_log_probabilities_stay_the_models_own(
    vocabulary: Vocabulary, compiler: GrammarCompiler
) -> None:
    grammar = compiler.compile(lark_grammar('start: "yes"'), "tools")
    sampler = Sampler(SamplingParameters(top_logprobs=1, grammar=grammar))
    logits = torch.zeros(len(vocabulary.tokenizer))
    logits[5] = 10.0
    token = sampler.sample(logits)
    assert vocabulary.text_of(token.token_id) == "yes"
    expected = torch.log_softmax(logits, dim=-1)
    assert token.logprob == pytest.approx(float(expected[token.token_id]))
    assert token.top[0][0] == 5


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "objekt"}, "objekt"),
        ({"not": {"type": "string"}}, "not"),
        ({"$ref": "#/$defs/absent"}, "absent"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "enum": ["x" * 300_000]}, "longer"),
        # Compiled without complaint, and lost at the first token or after the brace.
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "NoExtensionBias$"),
        ({"anyOf": [_object_with(f"k{number}") for number in range(2500)]}, "max is 2000"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused(
    compiler: GrammarCompiler, schema: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidInput, match=told) as refused:
        compiler.compile(json_schema_grammar(schema), "response_format")
    assert (refused.value.param, refused.value.code) == ("response_format", "invalid_schema")


def test_white_space_comes_to_an_end(vocabulary: Vocabulary, compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(json_schema_grammar(PERSON), "response_format")
    person = {"name": "Al", "age": 3}
    for text in (json.dumps(person), json.dumps(person, indent=2), '{"name":"Al","age":3}'):
        assert takes(grammar, vocabulary, text), text
    for text in ("{" + "\n" * 3, "{" + " " * 40):
        assert not takes(grammar, vocabulary, text), repr(text)


def takes(grammar: Grammar, vocabulary: Vocabulary, text: str) -> bool:
    state, nothing = grammar.follow(), torch.zeros(len(vocabulary.tokenizer))
    for token_id in vocabulary.tokenizer.encode(text, add_special_tokens=False):
        if token_id not in _finite(state.restrict(nothing)):
            return False
        state.accept(token_id)
    return True


def test_a_sentencepiece_vocabulary_is_understood() -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *'{}[]":,', *"abcdefghijklmnopqrstuvwxyz", *"0123456789"]
    model = models.BPE(
        {piece: number for number, piece in enumerate(pieces)},
        [],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    vocabulary = Vocabulary(tokenizer, frozenset({2}))
    grammar = GrammarCompiler(vocabulary, len(pieces) + 10).compile(
        json_schema_grammar({"type": "string", "enum": ["é a"]}), "response_format"
    )
    state, written = grammar.follow(), b""
    while (token_id := _finite(state.restrict(torch.zeros(len(pieces) + 10)))[-1]) != 2:
        state.accept(token_id)
        written += vocabulary.bytes_of(token_id)
    assert json.loads(written) == "é a"


def test_a_vocabulary_that_is_not_understood_is_the_models_fault() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    for end_token_ids in (frozenset({1}), frozenset[int]()):
        compiler = GrammarCompiler(Vocabulary(tokenizer, end_token_ids), 2)
        with pytest.raises(InvalidInput, match="not supported by this base model") as refused:
            compiler.compile(json_schema_grammar(PERSON), "response_format")
        assert refused.value.code == "unsupported_parameter"


def _finite(logits: Tensor) -> list[int]:
    return torch.isfinite(logits).nonzero()[:, 0].tolist()
