"""A loaded base model and its tokens."""

from pathlib import Path

import pytest
import torch

from worker.generation.vocabulary import Vocabulary, end_token_ids
from worker.trunk.device import DeviceProfile
from worker.trunk.loading import load_trunk
from worker.trunk.quicker import use_half
from worker.trunk.trunk import Trunk


@pytest.fixture(scope="session")
def trunk(base_model_dir: Path) -> Trunk:
    torch.set_num_threads(1)
    trunk = load_trunk(base_model_dir, DeviceProfile("cpu", "float32", 1))
    # As the engine does, where torch can.
    use_half(trunk)
    return trunk


@pytest.fixture(scope="session")
def vocabulary(trunk: Trunk) -> Vocabulary:
    return Vocabulary(trunk.tokenizer, end_token_ids(trunk))
