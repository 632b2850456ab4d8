"""Graders: what turns a model's answer into a reward, for the API and for a trainer alike."""

from app.domain.graders.grading import (
    Complete,
    Completion,
    ErrorKind,
    Grader,
    GraderError,
    GradeResult,
    ModelPrompt,
    Sampling,
    TokenUsage,
)
from app.domain.graders.registry import GRADERS, GraderKind, GraderModel, prepare_grader
from app.domain.graders.run import grade, grading, parse_grader
from app.domain.graders.wire import NamedGrader

__all__ = [
    "GRADERS",
    "Complete",
    "Completion",
    "ErrorKind",
    "GradeResult",
    "Grader",
    "GraderError",
    "GraderKind",
    "GraderModel",
    "ModelPrompt",
    "NamedGrader",
    "Sampling",
    "TokenUsage",
    "grade",
    "grading",
    "parse_grader",
    "prepare_grader",
]
