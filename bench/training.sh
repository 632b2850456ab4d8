#!/usr/bin/env bash
# One command: a virtual environment for the peer, then the comparison. See docs/benchmarks.md.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv-bench
if [ ! -f "$venv/.ready" ] || [ constraints.txt -nt "$venv/.ready" ]; then
  echo "Installing TRL into $venv ..."
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -c constraints.txt -e '.[ml]' trl==1.16.0 datasets==5.2.0
  touch "$venv/.ready"
fi
model=$(.venv/bin/tunesmith models fetch smollm2-135m-instruct | tail -n 1)
# One thread, so that the processor seconds of the process are those of the work.
export OMP_NUM_THREADS=1 TUNESMITH_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
exec "$venv/bin/python" bench/training.py --model "$model" "$@"
