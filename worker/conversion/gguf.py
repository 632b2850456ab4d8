"""A GGUF file becomes an ordinary safetensors directory.

Loading a GGUF takes about sixty times as long as loading safetensors, and transformers will not
save a model that it still holds as GGUF-quantised: the weights move into a plain model first.
"""

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from worker.conversion.fetched import only_file


def convert(fetched: Path, into: Path) -> None:
    """Write the one `*.gguf`, dequantised to bfloat16, and its tokenizer. See the package."""
    gguf = only_file(fetched, "*.gguf")
    for path in fetched.iterdir():
        if path.is_file() and path != gguf:
            shutil.copyfile(path, into / path.name)
    tokenizer = AutoTokenizer.from_pretrained(fetched, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(fetched, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.to(torch.bfloat16).save_pretrained(into)  # type: ignore[arg-type]
    tokenizer.save_pretrained(into)
