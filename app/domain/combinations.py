"""Which task, method and kind of adapter go together; what does not is refused with the reason."""

from app.domain.errors import InvalidInput
from app.domain.job_spec import AdapterSpec
from app.domain.methods import METHODS
from app.domain.peft_kinds import PEFT_KINDS
from app.domain.tasks import TASKS


def check_combination(task: str, method: str, adapter: AdapterSpec) -> None:
    """Refuse what could not be trained or served.

    Raises:
        InvalidInput: naming the field and the reason.
    """
    if not TASKS[task].kinds_for(method):
        known = ", ".join(name for name in METHODS if TASKS[task].kinds_for(name))
        raise InvalidInput(
            f"the task {task} cannot be learnt by the method {method!r}; it can by {known}",
            param="method",
        )
    PEFT_KINDS[adapter.type]
