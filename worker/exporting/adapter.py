"""The adapter as training wrote it, in the format of `peft`; or all weights, if all were tuned."""

import shutil
from pathlib import Path

from worker.exporting.format import ReadBack
from worker.exporting.model import ExportedModel
from worker.trunk.peft_format import CONFIG_NAME


class AdapterFormat:
    """See `Format`."""

    packing = "tar.gz"

    def write(self, model: ExportedModel, quantization: str, into: Path) -> None:
        shutil.copytree(model.adapter, into, dirs_exist_ok=True)

    def read_back(self, model: ExportedModel, directory: Path) -> ReadBack:
        method = "peft" if (directory / CONFIG_NAME).exists() else "torch"
        return ReadBack(method, model.outputs(model.load_adapter(directory)))

    def usage(self, name: str) -> str:
        return f"""\
```sh
tar xf {name}.tar.gz
```

Beside `adapter_config.json` and `adapter_model.safetensors`, as `peft` loads them onto the base
model, lie the tokenizer, the chat template and `manifest.json`. A model of which every weight was
trained has `model.safetensors` with `config.json` instead, which `transformers` loads by itself.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base = AutoModelForCausalLM.from_pretrained("<the base model>")
model = PeftModel.from_pretrained(base, "{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```
"""
