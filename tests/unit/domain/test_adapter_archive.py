import io
import json
import stat
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.adapter_archive import (
    MAX_FILES,
    AdapterSummary,
    check_adapter,
    unpack_adapter,
)
from app.domain.errors import InvalidFile
from tests.support.adapters import (
    BASE_NAME,
    CONFIG,
    LORA_SHAPES,
    Q_PROJ,
    WEIGHTS,
    adapter_files,
    safetensors,
    zipped,
)

MAX_MESSAGE_CHARACTERS = 700
LORA = {
    "type": "lora",
    "r": 2,
    "alpha": 4,
    "dropout": 0.0,
    "target_modules": ["q_proj"],
}
GOOD = zipped(adapter_files())


def summary_of(content: bytes) -> AdapterSummary:
    return check_adapter(io.BytesIO(content))


def refusal_of(content: bytes) -> str:
    with pytest.raises(InvalidFile) as refused:
        summary_of(content)
    assert refused.value.param == "file"
    assert len(refused.value.message) <= MAX_MESSAGE_CHARACTERS
    return refused.value.message


def with_config(**changes: Any) -> bytes:
    return zipped(adapter_files(changes))


def with_weights(weights: bytes, **changes: Any) -> bytes:
    return zipped(adapter_files(changes, weights))


def with_files(more: Mapping[str, bytes]) -> bytes:
    return zipped({**adapter_files(), **more})


def test_an_adapter_is_known_by_its_config_and_its_tensors() -> None:
    assert summary_of(GOOD) == AdapterSummary(LORA, BASE_NAME, None)


@pytest.mark.parametrize("folder", ["", "my-adapter/"])
def test_it_is_at_the_top_or_in_one_folder_beside_what_is_not_read(folder: str) -> None:
    more = {
        "README.md": b"# mine",
        "tokenizer.json": b"{}",
        "special_tokens_map.json": b"{",
        "chat_template.jinja": b"{{ messages }}",
        "spiece.model": b"\x80\x02",
        "LICENSE": b"",
        "SHA256SUMS": b"",
        "notes/old.txt": b"",
    }
    assert summary_of(zipped({**adapter_files(), **more}, folder)).adapter == LORA


def test_it_is_unpacked_by_the_names_that_are_read_and_no_other(tmp_path: Path) -> None:
    task = {"task": "text-classification", "outline": {"problem": "single_label", "labels": ["a"]}}
    files = {**adapter_files(), "task.json": json.dumps(task).encode()}
    content = zipped({**files, "README.md": b"x"}, "top/")
    assert unpack_adapter(io.BytesIO(content), tmp_path).task == "text-classification"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize("name", [None, ""])
def test_an_adapter_may_name_no_base_model(name: str | None) -> None:
    assert summary_of(with_config(base_model_name_or_path=name)).base_model == ""


def test_a_whole_number_may_be_written_as_a_float() -> None:
    assert summary_of(with_config(lora_alpha=4.0)).adapter["alpha"] == 4


@pytest.mark.parametrize(
    "name",
    [
        "adapter_model.bin",
        "training_args.bin",
        "sub/optimizer.pt",
        "rng_state.PTH",
        "weights.pkl",
        "weights.pickle",
        "model.ckpt",
        "array.npy",
        "more.zip",
    ],
)
def test_what_could_be_pickle_is_refused_by_name(name: str) -> None:
    message = refusal_of(with_files({name: b"\x80\x05."}))
    assert repr(name) in message
    assert "save it as safetensors" in message


@pytest.mark.parametrize("name", ["modeling.py", "run.sh", "weights", "lib.so"])
def test_what_does_not_belong_to_an_adapter_is_refused_by_name(name: str) -> None:
    assert repr(name) in refusal_of(with_files({name: b""}))


def test_pickle_by_another_name_is_no_safetensors() -> None:
    pickled = b"\x80\x05\x95" + bytes(6) + b"\x8c\x05posix\x94."
    assert "is not safetensors" in refusal_of(with_weights(pickled))
    # A file of torch.save is a zip.
    assert "is not safetensors" in refusal_of(with_weights(zipped({"data.pkl": pickled})))


def test_a_link_is_refused() -> None:
    content = io.BytesIO(GOOD)
    with zipfile.ZipFile(content, "a") as archive:
        link = zipfile.ZipInfo("README.md")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    assert "is a link" in refusal_of(content.getvalue())


@pytest.mark.parametrize("path", ["../x.txt", "/etc/x.txt", "a/../../x.txt", "..\\x.txt"])
def test_a_path_that_leads_out_is_refused(path: str) -> None:
    assert "leads out" in refusal_of(with_files({path: b""}))


def test_so_many_files_are_refused() -> None:
    more = {f"{number}.txt": b"" for number in range(MAX_FILES)}
    assert "at most" in refusal_of(with_files(more))


def test_a_name_that_comes_twice_is_refused() -> None:
    content = io.BytesIO(GOOD)
    with zipfile.ZipFile(content, "a") as archive, pytest.warns(UserWarning, match="Dup"):
        archive.writestr(CONFIG, "{}")
    assert "more than once" in refusal_of(content.getvalue())


def test_what_unpacks_to_too_much_is_refused() -> None:
    declared = bytearray(GOOD)
    # The uncompressed size in the list of files at the end.
    place = declared.rindex(b"PK\x01\x02") + 24
    declared[place : place + 4] = struct.pack("<I", 2**32 - 2)
    assert "unpacks to more than" in refusal_of(bytes(declared))


def test_a_changed_byte_is_found() -> None:
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        for name, file in adapter_files().items():
            archive.writestr(name, file)
    changed = bytearray(stored.getvalue())
    changed[len(changed) // 2] ^= 1
    assert "damaged" in refusal_of(bytes(changed))


FILES: dict[str, tuple[bytes, str]] = {
    "empty_zip": (zipped({}), "it is empty"),
    "no_zip": (b"{}", "the zip is damaged"),
    "no_config": (zipped({WEIGHTS: safetensors()}), "no adapter_config.json"),
    "no_weights": (zipped({CONFIG: adapter_files()[CONFIG]}), f"no {WEIGHTS}"),
    "two_adapters": (
        zipped({f"{at}/{name}": file for at in "ab" for name, file in adapter_files().items()}),
        "more than one adapter",
    ),
    "too_deep": (zipped(adapter_files(), "a/b/"), "no adapter_config.json"),
    "config_of_no_json": (zipped({**adapter_files(), CONFIG: b"{"}), f"{CONFIG} is not valid"),
    "config_of_a_list": (zipped({**adapter_files(), CONFIG: b"[]"}), f"{CONFIG} is not valid"),
    "config_of_no_text": (zipped({**adapter_files(), CONFIG: b'{"a":"\xff"}'}), CONFIG),
    "deep_config": (zipped({**adapter_files(), CONFIG: b'{"a":' + b"[" * 100_000}), CONFIG),
    "large_config": (zipped({**adapter_files(), CONFIG: b" " * (1 << 21)}), "larger than"),
    "task_of_another_shape": (with_files({"task.json": b'{"task": "x"}'}), "task.json must be"),
    "labels_of_numbers": (
        with_files({"task.json": b'{"task":"text-classification","outline":{"labels":[1]}}'}),
        "labels must be",
    ),
    "labels_twice": (
        with_files({"task.json": b'{"task":"text-classification","outline":{"labels":["a","a"]}}'}),
        "two labels are the same",
    ),
}


@pytest.mark.parametrize(("content", "told"), FILES.values(), ids=FILES)
def test_a_zip_of_another_shape_is_refused(content: bytes, told: str) -> None:
    assert told in refusal_of(content)


NO_LORA = {"r": None, "lora_alpha": None, "num_virtual_tokens": 4}
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "no_type": ({"peft_type": None}, "peft_type 'None'"),
    "another_type": ({"peft_type": "XLORA"}, "'XLORA' cannot be trained here"),
    "type_of_a_number": ({"peft_type": 1}, "expected one of LORA, ADALORA"),
    "no_rank": ({"r": None}, "'r' is missing"),
    "rank_of_a_word": ({"r": "2"}, "adapter_config.json"),
    "dropout": ({"lora_dropout": 1.5}, "lora_dropout"),
    "alpha": ({"lora_alpha": 0}, "lora_alpha"),
    "pattern": ({"target_modules": ".*proj"}, "target_modules must be a list of names"),
    "bias": ({"bias": "all"}, "'bias'"),
    "ranks": ({"rank_pattern": {"q_proj": 8}}, "'rank_pattern'"),
    "transposed": ({"fan_in_fan_out": True}, "'fan_in_fan_out'"),
    "something_new": ({"use_magic": 0.5}, "'use_magic'"),
    "base_changed": ({"init_lora_weights": "pissa"}, "'pissa', which changed"),
    "base_of_a_number": ({"base_model_name_or_path": 1}, "must be the name of a model"),
    "base_with_nul": ({"base_model_name_or_path": "a\0"}, "must be the name of a model"),
    "saved_modules": ({"modules_to_save": "head"}, "modules_to_save must be a list"),
    "dora_without_magnitudes": ({"use_dora": True}, "lora_magnitude_vector"),
    "rank_of_another": ({"r": 4}, "do not have the rank r"),
    "another_kind": (
        {**NO_LORA, "peft_type": "IA3", "num_virtual_tokens": None},
        "none of a ia3 adapter's",
    ),
    "prompt": ({**NO_LORA, "peft_type": "PROMPT_TUNING"}, "none of a prompt-tuning"),
}


@pytest.mark.parametrize(("changes", "told"), CONFIGS.values(), ids=CONFIGS)
def test_what_cannot_be_trained_further_is_refused(changes: dict[str, Any], told: str) -> None:
    assert told in refusal_of(with_config(**changes))


def entry(**changes: Any) -> dict[str, Any]:
    name = f"{Q_PROJ}.lora_A.weight"
    size = 4 * 2 * 576
    return {name: {"dtype": "F32", "shape": [2, 576], "data_offsets": [0, size], **changes}}


WHOLE = safetensors()
HEADERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "expected 8 bytes"),
    "shorter_than_its_header": (struct.pack("<Q", 100) + b"{}", "is not safetensors"),
    "endless_header": (struct.pack("<Q", 2**64 - 1) + b"{}", "is not safetensors"),
    "header_of_a_list": (struct.pack("<Q", 2) + b"[]", "is not the JSON"),
    "deep_header": (struct.pack("<Q", 60_005) + b'{"a":' + b"[" * 60_000, "is not the JSON"),
    "no_tensors": (struct.pack("<Q", 2) + b"{}", "adapt no layer"),
    "cut": (WHOLE[:-1], "its header tells of"),
    "more_behind": (WHOLE + b"\0", "its header tells of"),
    "int8": (safetensors(changes=entry(dtype="I8")), "'I8'; expected float32"),
    "float64": (safetensors(changes=entry(dtype="F64")), "'F64'; expected float32"),
    "shape": (safetensors(changes=entry(shape=[2, 577])), "does not have as many bytes"),
    "negative": (safetensors(changes=entry(shape=[-2, -576])), "a shape that no weight has"),
    "huge": (safetensors(changes=entry(shape=[2**62, 2**62])), "as many bytes"),
    "overlap": (
        safetensors(changes=entry(data_offsets=[4, 4 + 4 * 2 * 576])),
        "does not begin where",
    ),
    "outside": (
        safetensors(
            {f"{Q_PROJ}.lora_A.weight": (2, 576)}, entry(data_offsets=[2**40, 2**40 + 4608])
        ),
        "does not begin where",
    ),
    "more_in_an_entry": (safetensors(changes=entry(evil=1)), "is not the JSON"),
    "metadata": (safetensors(changes={"__metadata__": {"a": 1}}), "is not the JSON"),
    "unknown_tensor": (safetensors({**LORA_SHAPES, "model.embed.weight": (2, 2)}), "is none of a"),
    "embedding": (
        safetensors({**LORA_SHAPES, "base_model.model.model.embed.lora_embedding_A": (2, 2)}),
        "lora_embedding_A",
    ),
    "half": (safetensors({f"{Q_PROJ}.lora_A.weight": (2, 576)}), "has only lora_A.weight"),
    "unlikely_path": (
        safetensors({f"base_model.model.../x.lora_{one}.weight": (2, 2) for one in "AB"}),
        "is none of a lora adapter's",
    ),
}


@pytest.mark.parametrize(("weights", "told"), HEADERS.values(), ids=HEADERS)
def test_weights_that_are_not_whole_are_refused(weights: bytes, told: str) -> None:
    assert told in refusal_of(with_weights(weights))


def outcome_of(content: bytes) -> AdapterSummary | InvalidFile:
    """Return what comes of a file; anything but these two is an error of ours."""
    outcome: AdapterSummary | InvalidFile
    try:
        outcome = summary_of(content)
    except InvalidFile as refusal:
        outcome = refusal
    if isinstance(outcome, InvalidFile):
        assert len(outcome.message) <= MAX_MESSAGE_CHARACTERS
    return outcome


@settings(max_examples=150)
@given(place=st.integers(0, len(GOOD) - 1), new=st.binary(max_size=12))
def test_a_changed_zip_is_read_or_refused(place: int, new: bytes) -> None:
    outcome_of(GOOD[:place] + new + GOOD[place + len(new) :])


@settings(max_examples=150)
@given(place=st.integers(0, 600), new=st.binary(max_size=12))
def test_a_changed_header_is_read_or_refused(place: int, new: bytes) -> None:
    outcome_of(with_weights(WHOLE[:place] + new + WHOLE[place + len(new) :]))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    (
        "peft_type",
        "base_model_name_or_path",
        "r",
        "init_r",
        "lora_alpha",
        "target_modules",
        "modules_to_save",
        "rank_pattern",
        "use_dora",
        "init_lora_weights",
        "num_virtual_tokens",
    )
)
PEFT_TYPES = st.sampled_from(["LORA", "ADALORA", "IA3", "LOKR", "OFT", "VERA", "PREFIX_TUNING"])


@settings(max_examples=200)
@given(changes=st.dictionaries(FIELDS, JSON, max_size=4), peft_type=PEFT_TYPES | JSON)
def test_any_config_is_read_or_refused(changes: dict[str, Any], peft_type: Any) -> None:
    outcome_of(with_config(**{"peft_type": peft_type, **changes}))


@settings(max_examples=100)
@given(content=JSON)
def test_any_task_file_is_read_or_refused(content: Any) -> None:
    outcome_of(with_files({"task.json": json.dumps(content).encode()}))
