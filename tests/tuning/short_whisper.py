"""Whisper with its own weights that hears two seconds of a recording instead of thirty.

Its encoder takes as long for silence as for speech, and what an adapter learns of a layer does not
depend on how many frames go through it.
"""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

SECONDS = 2
# The encoder sees half as many places as there are frames of ten milliseconds.
_FRAMES_A_SECOND, _PLACES_A_SECOND = 100, 50
_SAMPLES_A_SECOND = 16_000
_PLACES = "model.encoder.embed_positions.weight"


def shortened(whisper: Path, directory: Path) -> Path:
    """Write a model with the first places of the encoder only, and return where it is."""
    for path in whisper.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copy(path, directory)
    _change(directory / "config.json", max_source_positions=SECONDS * _PLACES_A_SECOND)
    _change(
        directory / "preprocessor_config.json",
        chunk_length=SECONDS,
        n_samples=SECONDS * _SAMPLES_A_SECOND,
        nb_max_frames=SECONDS * _FRAMES_A_SECOND,
    )
    tensors = load_file(whisper / "model.safetensors")
    tensors[_PLACES] = tensors[_PLACES][: SECONDS * _PLACES_A_SECOND].clone()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _change(path: Path, **settings: int) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
