"""Several processes in one run, over `torch.distributed`.

Rank 0 speaks with the supervisor, decides, validates and writes. The others do what it does of a
step: the same model, the same records in the same order, so that equal gradients make equal
weights.
"""

import hashlib
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor, nn

from app.domain.errors import InvalidInput, TrainingFailed
from worker.training.batches import derived_seed
from worker.training.failures import Failure
from worker.training.parallel import Weights

EXIT_GROUP_LOST = 76

# Numbers that are summed at once: all gradients of a large model side by side need too much memory.
_BUCKET = 1 << 24
# The others wait while rank 0 validates; whether it hangs is for its supervisor to judge.
_PATIENCE = timedelta(days=7)
_STEP, _END = "step", "end"

_Item = TypeVar("_Item")

_log = logging.getLogger("tunesmith.training")


class RankFailed(TrainingFailed):
    """Another rank could not go on."""


class _Word(msgspec.Struct, frozen=True):
    value: Any = None
    failure: Failure | None = None


class Ranks:
    """See `parallel.Group`: several processes, which must all come to each call in the same order.

    Between `begin` and the end of a run, what any rank does next with the others is an exchange of
    words: so one that fails can tell it, and all leave the run together. One that is gone takes the
    group with it: the others exit.

    Args:
        meeting: a file that the ranks find each other by; deleted once they have.
        device: `cpu` or `cuda`; on the latter each rank has the device of its number.

    Raises:
        InvalidInput: there are fewer devices than ranks.
    """

    def __init__(self, rank: int, size: int, meeting: Path, device: str) -> None:
        self.rank = rank
        self.size = size
        self._is_running = False
        backend = "gloo"
        if device == "cuda":
            found = torch.cuda.device_count()
            if size > found:
                raise InvalidInput(f"TUNESMITH_PROCESSES is {size}, and there are {found} devices")
            torch.cuda.set_device(rank)
            # Words go through the processor, so that nobody waits on the device for one who failed.
            backend = "cpu:gloo,cuda:nccl"
        _keep_to_this_machine()
        with _or_exit():
            dist.init_process_group(
                backend,
                init_method=meeting.resolve().as_uri(),
                rank=rank,
                world_size=size,
                timeout=_PATIENCE,
            )
            # By a first sum, so that nothing has to be looked up in the file afterwards.
            present = torch.ones(1, device=device)
            dist.all_reduce(present)
            assert int(present) == size
        meeting.unlink(missing_ok=True)

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        return items[self.rank :: self.size]

    def own_seed(self, *parts: int | str) -> int:
        return derived_seed(*parts, "rank", self.rank) if self.rank else derived_seed(*parts)

    def sum_metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        sums: dict[str, float] = {}
        for found in self._exchange(dict(metrics)):
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value
        return sums

    @torch.no_grad()
    def sum_gradients(self, weights: Weights) -> None:
        # Nobody can be told of what goes wrong within a sum.
        with _or_exit():
            for bucket in _buckets(weight for _, weight in weights):
                _sum_bucket(bucket)

    def begin(self) -> None:
        """Enter a run: from here on, a rank that fails tells the others."""
        self._is_running = True

    def start(self, weights: Weights | None) -> None:
        """Make sure that all ranks are about to take the first step of the same run.

        Args:
            weights: what is trained; None: rank 0 takes the steps alone, and the others leave.

        Raises:
            RankFailed: another one has failed so far.
            RuntimeError: the ranks differ.
        """
        found = self._exchange(_digest(weights) if weights is not None else None)
        if len(set(found)) > 1:
            raise RuntimeError("the processes of this run do not have the same weights")
        self._is_running = weights is not None

    def tell_step(self) -> None:
        """Let the others take a step. Raises: RankFailed."""
        if self._is_running:
            self._exchange(_STEP)

    def is_step_next(self) -> bool:
        """Wait for what rank 0 does next; False when the run is over. Raises: RankFailed."""
        if self._is_running:
            self._is_running = self._exchange()[0] == _STEP
        return self._is_running

    def end(self) -> None:
        """Let the others leave the run. Raises: RankFailed."""
        if self._is_running:
            self._exchange(_END)
            self._is_running = False

    def fail(self, failure: Failure) -> None:
        """Leave the run, and have all others leave it."""
        if self._is_running:
            self._is_running = False
            self._tell(_Word(failure=failure))

    def _exchange(self, value: Any = None) -> list[Any]:
        """Return what every rank has said, by rank."""
        words = self._tell(_Word(value))
        for rank, word in enumerate(words):
            if word.failure is not None:
                self._is_running = False
                _log.warning("process %d of the run failed: %s", rank, word.failure.message)
                raise RankFailed(
                    word.failure.message, code=word.failure.code, param=word.failure.param
                )
        return [word.value for word in words]

    def _tell(self, word: _Word) -> list[_Word]:
        # MessagePack and not JSON, which has no word for what is not finite.
        content = torch.frombuffer(bytearray(msgspec.msgpack.encode(word)), dtype=torch.uint8)
        with _or_exit():
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([content.numel()]))
            longest = max(int(length) for length in lengths)
            contents = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(contents, nn.functional.pad(content, (0, longest - content.numel())))
        return [
            msgspec.msgpack.decode(found[: int(length)].numpy().tobytes(), type=_Word)
            for found, length in zip(contents, lengths, strict=True)
        ]


def _sum_bucket(weights: Sequence[nn.Parameter]) -> None:
    device = weights[0].device
    # Where no rank has a gradient there must be none afterwards: an optimizer passes over it.
    has_gradient = torch.tensor([float(one.grad is not None) for one in weights], device=device)
    gradients = [
        torch.zeros(one.numel(), device=device) if one.grad is None else one.grad.flatten().float()
        for one in weights
    ]
    together = torch.cat([has_gradient, *gradients])
    dist.all_reduce(together)
    lengths = [len(weights), *(one.numel() for one in weights)]
    holders, *summed = together.split(lengths)  # type: ignore[no-untyped-call]
    for weight, count, gradient in zip(weights, holders.tolist(), summed, strict=True):
        if count == 0:
            continue
        if weight.grad is None:
            weight.grad = torch.empty_like(weight)
        # In place: the gradients of an adapter's matrices are views of one.
        weight.grad.copy_(gradient.view_as(weight))


def _buckets(weights: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield weights in order, as many together as stay within a bucket and at least one."""
    together: list[nn.Parameter] = []
    total = 0
    for weight in weights:
        if together and total + weight.numel() > _BUCKET:
            yield together
            together, total = [], 0
        together.append(weight)
        total += weight.numel()
    if together:
        yield together


def _digest(weights: Weights) -> str:
    found = hashlib.sha256()
    for name, weight in weights:
        content: Tensor = weight.detach().contiguous().cpu().flatten().view(torch.uint8)
        found.update(name.encode())
        found.update(content.numpy().data)
    return found.hexdigest()


def _keep_to_this_machine() -> None:
    """Let the processes talk over the loopback interface, which others cannot reach."""
    loopbacks = (name for _, name in socket.if_nameindex() if name.startswith("lo"))
    if loopback := next(loopbacks, None):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)


@contextmanager
def _or_exit() -> Iterator[None]:
    """End the process where the others cannot be reached: nothing can come of the run here."""
    try:
        yield
    except RuntimeError:
        _log.exception("a process of the group is gone, or out of step")
        os._exit(EXIT_GROUP_LOST)
