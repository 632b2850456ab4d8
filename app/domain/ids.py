"""Identifiers: random, prefixed by what they name, never derived from user input."""

import re
import secrets

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZabcdefghjkmnpqrstvwxyz"
_NAME_PART = re.compile(r"[^A-Za-z0-9._-]+")


def new_id(prefix: str, length: int = 24) -> str:
    """Return `prefix` followed by `length` random characters (5.7 bits each)."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(length))


def fine_tuned_model_name(
    base_model: str, organization: str, suffix: str | None, job_id: str
) -> str:
    """Return `ft:<base>:<org>:<suffix>:<id>`, which is unique because the job id is.

    A job that starts from a fine-tuned model keeps the plain base model in its name.
    """
    unique = job_id.removeprefix("ftjob-")[:12]
    organization = _NAME_PART.sub("-", organization.lower())
    return f"ft:{base_model}:{organization}:{suffix or ''}:{unique}"


def checkpoint_model_name(fine_tuned_model: str, step: int) -> str:
    """Return the name under which the weights of one checkpoint can be called."""
    return f"{fine_tuned_model}:ckpt-step-{step}"
