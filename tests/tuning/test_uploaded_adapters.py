"""What `peft` saves of every kind of adapter is read without torch, and trained further."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, save
from transformers import LlamaConfig, LlamaForCausalLM

from app.domain.adapter_archive import check_adapter
from app.domain.errors import InvalidInput
from app.domain.job_spec import AdapterRef, AdapterSpec, FileRef
from app.domain.peft_kinds import FULL
from app.storage.local import LocalStorage
from tests.support.adapters import CONFIG, TASK, WEIGHTS, zipped
from tests.tasks.conftest import RunTask, task_spec
from tests.tuning.conftest import ROWS, Row
from tests.tuning.samples import SAMPLES
from worker.tuning.peft_config import Surroundings
from worker.tuning.peft_tuning import PeftTuning

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

CLASSIFICATION = "text-classification"
# As they are saved, twice the rank with one half fixed is an ordinary LoRA, and rates are no shape.
_ORDINARY = {"init": "default", "lora_plus_ratio": None}


@pytest.mark.parametrize("row", [row for row in ROWS if row.kind != FULL], ids=str)
def test_the_shape_is_read_from_what_is_saved(row: Row, tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    around = Surroundings(LlamaForCausalLM(config), (), "CAUSAL_LM", total_steps=10)
    PeftTuning(row.adapter, around).save(tmp_path, "acme/base")
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    found = check_adapter(io.BytesIO(zipped(files)))

    assert found.base_model == "acme/base"
    read = AdapterSpec.of_wire(found.adapter).complete_options()
    expected: dict[str, Any] = row.adapter.complete_options()
    if row.kind == "oft":
        # The largest that fits layers of widths 32 and 64, where none was chosen.
        expected["block_size"] = expected["block_size"] or 32
    times = 2 if expected.get("init") == "pissa" else 1
    expected |= {key: _ORDINARY[key] for key in _ORDINARY if key in expected}
    for option in {"r", "alpha"} & expected.keys() if times == 2 else ():
        expected[option] *= times
    if "target_modules" in expected:
        expected["target_modules"] = read["target_modules"]
        assert set(read["target_modules"]) <= {
            *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        }
        assert len(read["target_modules"]) >= 3
    assert (found.adapter["type"], read) == (row.kind, expected)


def test_a_classifier_goes_on_with_its_head_and_its_labels(
    run_task: RunTask, storage: LocalStorage, minilm: Path
) -> None:
    records = SAMPLES[CLASSIFICATION].records
    spec = task_spec(storage, CLASSIFICATION, records, adapter=AdapterSpec("lora", {"r": 2}))
    prefix = f"{run_task(spec, minilm).last['prefix']}/adapter"
    directory = storage.directory(prefix)
    files = {name: (directory / name).read_bytes() for name in (CONFIG, WEIGHTS, TASK)}

    def first_loss(start: AdapterRef, lease: int) -> float:
        attempt = run_task(replace(spec, start_from=start), minilm, lease=lease)
        loss: float = attempt.of_type("step")[0]["train_loss"]
        return loss

    loss = first_loss(upload(storage, "file-whole", files), 2)
    assert loss == first_loss(AdapterRef("ft:first", prefix), 3)

    without_head = {**files, WEIGHTS: without(files[WEIGHTS], "classifier")}
    with pytest.raises(InvalidInput, match="no weights of 'classifier'"):
        first_loss(upload(storage, "file-headless", without_head), 4)
    other = {**files, TASK: b'{"task": "text-classification", "outline": {}}'}
    with pytest.raises(InvalidInput, match=r"task\.json"):
        first_loss(upload(storage, "file-no-labels", other), 5)


def upload(storage: LocalStorage, name: str, files: dict[str, bytes]) -> AdapterRef:
    content = zipped(files)
    storage.put(f"files/{name}", [content])
    return AdapterRef(file=FileRef(name, f"files/{name}", hashlib.sha256(content).hexdigest()))


def without(weights: bytes, module: str) -> bytes:
    tensors = load(weights)
    return save({name: one for name, one in tensors.items() if f".{module}." not in name})
