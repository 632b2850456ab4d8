"""Tokens per second of the engine and its peers in one run.

Each peer has a process of its own, and they take turns: in each round every peer generates for the
same prompts, as many at once as there are streams. What is compared is time, prompts included: with
one thread that of the processor, so that a busy machine shifts all sides alike; with more
(`OMP_NUM_THREADS`) that of the clock.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.domain.job_spec import LoraSpec
from worker.exporting.gguf_model import write_model
from worker.trunk.device import DeviceProfile
from worker.trunk.loading import load_trunk
from worker.trunk.lora import new_adapter
from worker.trunk.peft_format import save_adapter

ADAPTERS = 8
PROMPT_TOKENS = 46
PEERS = Path(__file__).parent / "serving_peers"
# What each peer can do; one stream has one adapter at most, so `mixed` is left out there.
CASES = {
    "tunesmith": ("base", "one", "mixed", "merged"),
    "tunesmith-int8": ("base", "one", "mixed", "merged"),
    "transformers": ("base",),
    "peft": ("base", "one", "mixed"),
    "vllm": ("base", "one", "mixed"),
    # A context of it has one adapter for all sequences.
    "llama.cpp-f16": ("base",),
    "llama.cpp-q8_0": ("base",),
}

# Of a peer, a case and a number of streams: tokens per processor second, one a round.
Key = tuple[str, str, int]


@dataclass(frozen=True)
class Peer:
    """A process that generates when it is asked."""

    name: str
    process: subprocess.Popen[str]

    def ask(self, case: str, prompts: Sequence[list[int]], tokens: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        asked = {"case": case, "prompts": prompts, "tokens": tokens}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return self.reply()

    def reply(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        while line and not line.startswith("{"):  # What a library says while it is imported.
            line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} has ended")
        reply: dict[str, Any] = json.loads(line)
        return reply


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="safetensors directory")
    parser.add_argument("--peers", nargs="*", default=[], help="NAME=PYTHON of each")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--text", type=Path, default=Path("examples/support-desk/train.jsonl"))
    parser.add_argument("--verbose", action="store_true", help="show what the peers say")
    chosen = parser.parse_args()
    pythons = {"tunesmith": sys.executable, "tunesmith-int8": sys.executable}
    pythons |= dict(one.split("=", 1) for one in chosen.peers)
    with ExitStack() as stack:
        adapters = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_adapters(chosen.model, adapters)
        started = [
            start(stack, name, python, chosen.model, adapters, is_verbose=chosen.verbose)
            for name, python in pythons.items()
        ]
        peers = [peer for peer in started if peer is not None]
        prompts = make_prompts(chosen.model, chosen.text, max(chosen.streams))
        compare_answers(peers, prompts[:ADAPTERS], chosen.tokens)
        speeds, firsts = race(peers, prompts, chosen.streams, chosen.rounds, chosen.tokens)
    report(speeds, firsts, [peer.name for peer in peers], chosen.streams)


def make_adapters(model: Path, into: Path) -> None:
    """Save adapters as training makes them by default, which change what the model says."""
    trunk = load_trunk(model, DeviceProfile("cpu", "float32", 1))
    for index in range(ADAPTERS):
        adapter = new_adapter(trunk.model, LoraSpec(), index)
        generator = torch.Generator().manual_seed(index)
        for pair in adapter.weights.values():
            pair.b.normal_(0, 0.05, generator=generator)
        (into / f"a{index}").mkdir()
        save_adapter(into / f"a{index}", adapter, str(model))


def make_gguf(model: Path, into: Path, quantization: str) -> Path:
    """Save the base model as llama.cpp reads it."""
    path = into / f"{quantization}.gguf"
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    write_model(path, whole, AutoTokenizer.from_pretrained(model), quantization)
    return path


def make_prompts(model: Path, text: Path, count: int) -> list[list[int]]:
    """Cut real text into prompts of one length, so that nobody has to pad."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    messages = [m for line in text.read_text().splitlines() for m in json.loads(line)["messages"]]
    stream = tokenizer("\n".join(message["content"] for message in messages)).input_ids
    return [stream[at * PROMPT_TOKENS :][:PROMPT_TOKENS] for at in range(count)]


def start(
    stack: ExitStack, name: str, python: str, model: Path, adapters: Path, *, is_verbose: bool
) -> Peer | None:
    """Start a peer and wait until it is ready; None if it cannot be."""
    library, _, numbers = name.partition("-")
    script = PEERS / f"with_{library.replace('.', '_')}.py"
    command = [python, "-W", "ignore", str(script), "--model", str(model)]
    command += ["--adapters", str(adapters)]
    if library == "llama.cpp":
        command += ["--gguf", str(make_gguf(model, adapters, numbers))]
    elif numbers == "int8":
        command.append("--int8")
    process = stack.enter_context(
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if is_verbose else subprocess.DEVNULL,
            text=True,
        )
    )
    stack.callback(process.kill)
    peer = Peer(name, process)
    try:
        peer.reply()
        # Some start, and end at the first product that the processor has no kernel for.
        peer.ask("base", [[1, 2, 3]], 1)
    except SystemExit:
        print(f"{name} does not run here and is left out")
        return None
    return peer


def compare_answers(peers: Sequence[Peer], prompts: Sequence[list[int]], tokens: int) -> None:
    """Print of how many answers each peer agrees with PEFT, token for token."""
    if "peft" not in (peer.name for peer in peers):
        return
    found = {
        peer.name: peer.ask("mixed", prompts, tokens)["answers"]
        for peer in peers
        if "mixed" in CASES[peer.name]
    }
    for name, answers in found.items():
        same = sum(one == other for one, other in zip(answers, found["peft"], strict=True))
        print(f"{name}: {same} of {len(prompts)} mixed answers are PEFT's, token for token")


def race(
    peers: Sequence[Peer],
    prompts: Sequence[list[int]],
    streams: Sequence[int],
    rounds: int,
    tokens: int,
) -> tuple[dict[Key, list[float]], dict[str, list[float]]]:
    speeds: dict[Key, list[float]] = defaultdict(list)
    firsts: dict[str, list[float]] = defaultdict(list)
    dice = random.Random(1)
    for turn in range(rounds + 1):
        for count in streams:
            turns = [
                (peer, case)
                for peer in peers
                for case in CASES[peer.name]
                if case != "mixed" or count > 1
            ]
            dice.shuffle(turns)
            for peer, case in turns:
                reply = peer.ask(case, prompts[:count], tokens)
                if turn > 0:  # The first round pays for warming up on all sides.
                    speeds[peer.name, case, count].append(count * tokens / reply["seconds"])
        for peer in peers:
            if turn > 0 and peer.name.startswith("tunesmith"):
                firsts[f"{peer.name}, idle"].append(peer.ask("first", prompts[:1], 1)["seconds"])
                under_load = peer.ask("first", prompts, 1)["seconds"]
                firsts[f"{peer.name}, {len(prompts) - 1} under way"].append(under_load)
        print(f"round {turn} of {rounds} is over", file=sys.stderr)
    return speeds, firsts


def report(
    speeds: dict[Key, list[float]],
    firsts: dict[str, list[float]],
    names: Sequence[str],
    streams: Sequence[int],
) -> None:
    clock = "processor " if os.environ.get("OMP_NUM_THREADS", "1") == "1" else ""
    print(f"\nTokens per {clock}second, prompts included; medians\n")
    print("| | " + " | ".join(f"{count} streams" for count in streams) + " |")
    print("|---|" + "---|" * len(streams))
    for name in names:
        for case in CASES[name]:
            cells = [speeds.get((name, case, count)) for count in streams]
            shown = [f"{statistics.median(cell):.1f}" if cell else "" for cell in cells]
            print(f"| {name}, {case} | " + " | ".join(shown) + " |")
    print("\nRatios, as medians of the rounds' own\n")
    print("| | streams | ratio | rounds |\n|---|---|---|---|")
    for count in streams:
        for ours in ("tunesmith", "tunesmith-int8"):
            ratio(speeds, (ours, "mixed", count), (ours, "base", count))
            ratio(speeds, (ours, "mixed", count), ("peft", "mixed", count))
            ratio(speeds, (ours, "mixed", count), ("vllm", "mixed", count))
            ratio(speeds, (ours, "base", count), ("vllm", "base", count))
            ratio(speeds, (ours, "base", count), ("transformers", "base", count))
            llama_cpp = "llama.cpp-q8_0" if ours.endswith("-int8") else "llama.cpp-f16"
            ratio(speeds, (ours, "base", count), (llama_cpp, "base", count))
        ratio(speeds, ("peft", "mixed", count), ("peft", "base", count))
        ratio(speeds, ("vllm", "mixed", count), ("vllm", "base", count))
    print(f"\n{clock}milliseconds to the first token of a prompt of 46, eight adapters\n")
    print("| | median | longest |\n|---|---|---|")
    for name, seconds in firsts.items():
        print(f"| {name} | {1e3 * statistics.median(seconds):.0f} | {1e3 * max(seconds):.0f} |")


def ratio(speeds: dict[Key, list[float]], upper: Key, lower: Key) -> None:
    if upper not in speeds or lower not in speeds:
        return
    ratios = sorted(a / b for a, b in zip(speeds[upper], speeds[lower], strict=True))
    print(
        f"| {upper[0]}, {upper[1]} / {lower[0]}, {lower[1]} | {upper[2]} | "
        f"**{statistics.median(ratios):.2f}x** | {ratios[0]:.2f} to {ratios[-1]:.2f} |"
    )


if __name__ == "__main__":
    main()
