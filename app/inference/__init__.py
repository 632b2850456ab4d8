"""Inference: one client for every engine that speaks OpenAI's wire with vLLM's adapter calls."""

from app.inference.port import AdapterFiles, Caller, EngineClient, MemberFiles
from app.inference.router import EngineRouter, EngineState, open_engine

__all__ = [
    "AdapterFiles",
    "Caller",
    "EngineClient",
    "EngineRouter",
    "EngineState",
    "MemberFiles",
    "open_engine",
]
