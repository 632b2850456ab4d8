"""Adapters on disk: where they may lie, and that only what fits its base model is served."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.base_models import InstalledBaseModel
from app.domain.errors import InvalidInput
from worker.serving.adapters import check_fits, inspect_adapter, locate_adapter
from worker.trunk.lora import LoraAdapter
from worker.trunk.peft_format import save_adapter

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def checkpoint(
    tmp_path: Path,
    installed_base: InstalledBaseModel,
    random_adapters: dict[str, LoraAdapter],
    write_trained: Callable[[Path, LoraAdapter], None],
) -> Path:
    """A checkpoint as the trainer publishes it."""
    write_trained(tmp_path / "step-3" / "adapter", random_adapters["red"])
    return tmp_path / "step-3"


def edit_manifest(checkpoint: Path, change: Change) -> None:
    """Change the manifest, and the listing with it, as no accident would."""
    path = checkpoint / "adapter" / "manifest.json"
    manifest = msgspec.json.decode(path.read_bytes())
    change(manifest)
    path.write_bytes(msgspec.json.encode(manifest))
    listing = msgspec.json.decode((checkpoint / "files.json").read_bytes())
    content = path.read_bytes()
    listing["adapter/manifest.json"] = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }
    (checkpoint / "files.json").write_bytes(msgspec.json.encode(listing))


def test_what_the_trainer_writes_fits(checkpoint: Path, installed_base: InstalledBaseModel) -> None:
    files = inspect_adapter(checkpoint / "adapter")
    check_fits(files, installed_base)
    assert files.base_name == installed_base.id
    assert files.chat_template is not None
    assert "<|im_start|>" in files.chat_template


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: m["base_model"].update(id="other"), "base model: other"),
        (lambda m: m["base_model"].update(revision="r2"), "base model's revision: r2"),
    ],
)
def test_another_base_model_is_refused(
    checkpoint: Path, installed_base: InstalledBaseModel, change: Change, what: str
) -> None:
    edit_manifest(checkpoint, change)
    with pytest.raises(InvalidInput, match=what) as refused:
        check_fits(inspect_adapter(checkpoint / "adapter"), installed_base)
    assert refused.value.code == "adapter_mismatch"


def test_another_tokenizer_is_refused(
    checkpoint: Path, installed_base: InstalledBaseModel, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidInput, match="another tokenizer"):
        check_fits(
            inspect_adapter(checkpoint / "adapter"),
            replace(installed_base, directory=tmp_path / "base"),
        )


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (lambda m: m.update(tokenizer_sha256="0" * 64), "tokenizer.json"),
        (lambda m: m.update(chat_template_sha256="0" * 64), "chat_template.jinja"),
        (lambda m: m.update(format_version=2), "manifest.json"),
        (lambda m: m.pop("base_model"), "manifest.json"),
    ],
)
def test_a_manifest_that_does_not_describe_its_files_is_refused(
    checkpoint: Path, change: Change, file: str
) -> None:
    edit_manifest(checkpoint, change)
    with pytest.raises(InvalidInput, match=file):
        inspect_adapter(checkpoint / "adapter")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "chat_template.jinja"])
def test_one_flipped_bit_is_found(checkpoint: Path, name: str) -> None:
    path = checkpoint / "adapter" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=f"{name} is not what was written") as refused:
        inspect_adapter(checkpoint / "adapter")
    assert refused.value.code == "checkpoint_corrupt"


def test_missing_and_unlisted_files_are_found(checkpoint: Path) -> None:
    extra = checkpoint / "adapter" / "extra.bin"
    extra.touch()
    with pytest.raises(InvalidInput, match=r"extra\.bin is not listed"):
        inspect_adapter(checkpoint / "adapter")
    extra.unlink()
    (checkpoint / "adapter" / "tokenizer_config.json").unlink()
    with pytest.raises(InvalidInput, match=r"tokenizer_config\.json is missing"):
        inspect_adapter(checkpoint / "adapter")


def test_an_adapter_of_ours_without_its_list_is_not_trusted(checkpoint: Path) -> None:
    """As a backup that was restored in part leaves it."""
    (checkpoint / "files.json").unlink()
    with pytest.raises(InvalidInput, match=r"files\.json cannot be read") as refused:
        inspect_adapter(checkpoint / "adapter")
    assert refused.value.code == "checkpoint_corrupt"


def test_a_plain_peft_adapter_must_name_its_base_model(
    tmp_path: Path, installed_base: InstalledBaseModel, random_adapters: dict[str, LoraAdapter]
) -> None:
    for name in (installed_base.id, installed_base.name):
        save_adapter(tmp_path, random_adapters["red"], name)
        files = inspect_adapter(tmp_path)
        check_fits(files, installed_base)
        assert files.chat_template is None
    save_adapter(tmp_path, random_adapters["red"], "somebody/else")
    with pytest.raises(InvalidInput, match="somebody/else"):
        check_fits(inspect_adapter(tmp_path), installed_base)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidInput, match="names no base model"):
        inspect_adapter(tmp_path)


def test_adapters_lie_below_the_root_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "linked").mkdir()
    (tmp_path / "out").mkdir()
    (root / "escape").symlink_to(tmp_path / "out")
    (root / "linked" / "adapter_config.json").symlink_to(tmp_path / "out")
    (root / "file").touch()
    assert locate_adapter(root, "in") == root / "in"
    assert locate_adapter(root, str(root / "in")) == root / "in"
    outside = ["", ".", "..", "../out", str(tmp_path / "out"), "/", "escape", "linked", "file"]
    for path in [*outside, "in/../../out", "absent", "in\0", "%2e%2e/out", "in/" * 3000]:
        with pytest.raises(InvalidInput) as refused:
            locate_adapter(root, path)
        assert refused.value.param == "lora_path"
