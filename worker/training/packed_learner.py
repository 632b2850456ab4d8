"""Text generation in training: one session on a trunk, in packed batches."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from worker.training.activations import activation_bytes, choose
from worker.training.earlier import Earlier
from worker.training.learner import (
    Measured,
    StateTensors,
    StepResult,
    WhichModel,
    WhichRows,
)
from worker.training.metrics import MetricsLog, ValidationMetrics
from worker.training.parallel import SOLO, Group
from worker.training.recomputation import (
    RecomputedLayers,
    has_repeated_layers,
    remember_pass,
)
from worker.training.records import EncodedDataset
from worker.training.rows import measure_rows
from worker.training.session import Session
from worker.training.step import trunk_step
from worker.training.trained_weights import TrainedWeights
from worker.training.validation import validate
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.device_memory import free_bytes
from worker.trunk.lora import LoraAdapter
from worker.trunk.trunk import Trunk

# What a token keeps is measured on so many.
_TRIED_TOKENS = 32


class PackedLearner:
    """See `learner.Learner`.

    Args:
        weights: what the session trains; put on the trunk until `close`.
        heldout: what to validate on, and which of its records.
        write_origin: adds to the directory of an adapter what it was trained with.
        reference: what `session.reference` names, if that is not the base model.
        earlier: data that the model learnt before; `session.reference` is then what it was.
        noise_alpha: of the noise on the embeddings; 0 adds none.
        become_served: see `learner.Learner`; None: nothing changes.
    """

    def __init__(
        self,
        trunk: Trunk,
        session: Session,
        weights: TrainedWeights,
        heldout: tuple[EncodedDataset, Sequence[int]] | None,
        token_budget: int,
        write_origin: Callable[[Path, int], None],
        *,
        reference: LoraAdapter | None = None,
        earlier: Earlier | None = None,
        noise_alpha: float = 0.0,
        become_served: Callable[[], None] | None = None,
    ) -> None:
        self._trunk = trunk
        self._session = session
        self._weights = weights
        self._heldout = heldout
        self._earlier = earlier
        self._token_budget = token_budget
        self._write_origin = write_origin
        self._group: Group = SOLO
        self._recomputed: RecomputedLayers | None = None
        self._become_served = become_served
        weights.attach(trunk, session)
        if reference is not None:
            assert session.reference is not None
            trunk.attach(session.reference, reference)
        if noise_alpha > 0:
            trunk.add_noise(session.name, noise_alpha, session.generator)

    @property
    def step(self) -> int:
        return self._session.step

    @step.setter
    def step(self, step: int) -> None:
        self._session.step = step

    @property
    def trained_tokens(self) -> int:
        return self._session.trained_tokens

    @trained_tokens.setter
    def trained_tokens(self, tokens: int) -> None:
        self._session.trained_tokens = tokens

    @property
    def log(self) -> MetricsLog:
        return self._session.log

    @log.setter
    def log(self, log: MetricsLog) -> None:
        self._session.log = log

    @property
    def steps_per_epoch(self) -> int:
        return self._session.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self._session.total_steps

    @property
    def learning_rate(self) -> float:
        return self._session.learning_rate

    @property
    def has_heldout(self) -> bool:
        return self._heldout is not None

    def description(self) -> dict[str, Any]:
        return self._session.dataset.description(self._session.records)

    def arrange_memory(self, asked: bool | Literal["auto"]) -> str:
        trunk, session = self._trunk, self._session
        dataset = session.dataset
        ids = dataset.tokens(0)[0][:_TRIED_TOKENS].tolist()
        tried = pack([SequenceRows(ids, session.name)], trunk.device)
        weights = [weight for _, weight in session.optimizer.weights()]
        state = session.generator.get_state()
        kept = activation_bytes([*trunk.model.parameters(), *weights], lambda: trunk.hidden(tried))
        session.generator.set_state(state)
        longest = max(dataset.length(record) for record in range(dataset.num_records))
        pass_bytes = kept * max(self._token_budget, longest) // len(ids)
        choice = choose(
            asked,
            pass_bytes,
            free_bytes(trunk.device),
            is_possible=has_repeated_layers(trunk.model),
        )
        if choice.is_recomputed:
            self._recomputed = RecomputedLayers(trunk.model, remember_pass(trunk))
        return choice.reason

    def weights(self) -> Sequence[tuple[str, nn.Parameter]]:
        return self._session.optimizer.weights()

    def share_steps(self, group: Group) -> bool:
        self._group = group
        return True

    def take_step(self, before_update: Callable[[], None]) -> StepResult:
        (found,) = trunk_step(self._trunk, [self._session], self._token_budget, self._group)
        before_update()
        grad_norm = self._session.update(found)
        self._weights.after_step(self._session.step)
        return StepResult(found.loss, found.metrics, grad_norm, found.num_tokens)

    def validate(self, is_interrupted: Callable[[], bool]) -> ValidationMetrics | None:
        assert self._heldout is not None
        dataset, records = self._heldout
        return validate(
            self._trunk, self._session, dataset, records, self._token_budget, is_interrupted
        )

    def become_served(self) -> None:
        if self._become_served is not None:
            self._become_served()

    def save_adapter(self, directory: Path) -> None:
        self._weights.save(directory)
        self._write_origin(directory, self._session.step)

    def state_tensors(self) -> StateTensors:
        session = self._session
        return {
            "optimizer": session.optimizer.state_tensors(),
            "rng": {"dropout": session.generator.get_state()},
            **self._weights.state_tensors(),
        }

    @property
    def has_earlier(self) -> bool:
        return self._earlier is not None

    def measure(
        self, model: WhichModel, rows: WhichRows, is_interrupted: Callable[[], bool]
    ) -> Measured | None:
        chosen = self._heldout
        if rows == "earlier":
            assert self._earlier is not None
            chosen = self._earlier.dataset, self._earlier.judged
        assert chosen is not None
        dataset, records = chosen
        session = self._session
        names = {"base": None, "start": session.reference, "tuned": session.name}
        adapter = names[model]
        return measure_rows(
            self._trunk,
            self._session.method,
            adapter,
            dataset,
            records,
            self._token_budget,
            is_interrupted,
        )

    def load_weights(self, adapter: Path, tensors: StateTensors) -> None:
        self._weights.load(adapter, tensors)

    def load_state(self, adapter: Path, tensors: StateTensors) -> None:
        self.load_weights(adapter, tensors)
        self._session.optimizer.load_state_tensors(tensors["optimizer"])
        self._session.generator.set_state(tensors["rng"]["dropout"])

    def close(self) -> None:
        if self._recomputed is not None:
            self._recomputed.end()
        self._weights.detach(self._trunk, self._session)
        if self._session.reference is not None:
            self._trunk.detach(self._session.reference)
