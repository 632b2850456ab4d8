"""What training on a quantized base model has cost, for people."""

from app.domain.job_spec import JobSpec
from worker.training.metrics import MetricsLog
from worker.training.outcome import Outcome


def quantization_notes(spec: JobSpec, log: MetricsLog, step: int, outcome: Outcome) -> list[str]:
    """Return the loss on the base model that was trained on, and on that which is served.

    Args:
        step: of the weights that are published.
        outcome: whose report was made on the base model as it is served.
    """
    kind = spec.hyperparameters.base_quantization
    trained = dict(log.history("loss")).get(step)
    served = ((outcome.summary or {}).get("metrics") or {}).get("loss", {}).get("tuned")
    if kind is None or trained is None or served is None:
        return []
    return [
        f"Loss on held-out records: {trained:.4f} on the {kind} base model, {served:.4f} on the "
        "base model as it is served, which the report is of"
    ]
