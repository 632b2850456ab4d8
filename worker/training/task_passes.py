"""How examples of a task go through its model: how many together, and on which device."""

from collections.abc import Iterator, Sequence

from torch import nn

from worker.tasks import Batch, Example, Task


class TaskPasses:
    """Cuts examples into passes.

    Args:
        model: what the passes go through.
        budget: what the examples of one pass may cost together.
        batch_size: examples of a step.
    """

    def __init__(self, task: Task, model: nn.Module, budget: int, batch_size: int) -> None:
        self.budget = budget
        self._task = task
        self._model = model
        self._batch_size = batch_size

    def cut(self, examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
        """Yield examples in order, as many as go through the model together.

        Where a loss compares the examples of a batch, they are batches as in training: so that a
        held-out loss depends on their size alone, and can be compared with that of training.
        """
        if not self._task.is_batch_whole:
            yield from in_passes(examples, self.budget)
            return
        for start in range(0, len(examples), self._batch_size):
            yield examples[start : start + self._batch_size]

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Return examples as one batch, on the model's device."""
        device = next(self._model.parameters()).device
        return {name: tensor.to(device) for name, tensor in self._task.collate(examples).items()}


def in_passes(examples: Sequence[Example], budget: int) -> Iterator[Sequence[Example]]:
    """Yield examples in order, as many together as stay within the budget once padded."""
    together: list[Example] = []
    longest = 0
    for example in examples:
        longest = max(longest, example.cost)
        if together and longest * (len(together) + 1) > budget:
            yield together
            together, longest = [], example.cost
        together.append(example)
    if together:
        yield together


def set_training(model: nn.Module, is_training: bool) -> None:
    """Switch dropout on or off; batch statistics stay those of the base model."""
    model.train(is_training)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
