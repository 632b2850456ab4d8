"""What some kinds of adapter do beside having weights that are trained."""

from collections.abc import Mapping
from typing import Any, Protocol

import peft
from torch import Tensor

from app.domain.job_spec import AdapterSpec
from worker.tuning.adalora import RankAllocation
from worker.tuning.peft_config import PISSA, allocates_ranks
from worker.tuning.pissa import PrincipalStart


class Extra(Protocol):
    """See `Tuning` for what each of these is for."""

    def before_update(self, step: int) -> Tensor | None: ...

    def after_update(self, step: int) -> None: ...

    def fit(self, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the tensors of a saved adapter as a new one of this kind has them."""

    def weights_replaced(self) -> None:
        """Take note that the weights are others now."""

    def state_tensors(self) -> dict[str, Tensor]:
        """Return what is not among the weights and is needed to go on."""

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...


class Nothing:
    """See `Extra`: most kinds are their weights."""

    def before_update(self, step: int) -> Tensor | None:
        return None

    def after_update(self, step: int) -> None:
        return

    def fit(self, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        return tensors

    def weights_replaced(self) -> None:
        return

    def state_tensors(self) -> dict[str, Tensor]:
        return {}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        return


def extra_of(adapter: AdapterSpec, model: peft.PeftModel, total_steps: int) -> Extra:
    """Return what an adapter of a kind does beside; a fresh one may be changed by it."""
    if adapter.type == "adalora":
        return RankAllocation(model, allocates=allocates_ranks(total_steps))
    if adapter.complete_options().get("init") == PISSA:
        return PrincipalStart(model)
    return Nothing()
