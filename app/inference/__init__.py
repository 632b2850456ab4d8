"""Inference: one client for every engine that speaks OpenAI's wire with vLLM's adapter calls."""

from app.inference.port import AdapterFiles, EngineClient, MemberFiles, open_engine

__all__ = ["AdapterFiles", "EngineClient", "MemberFiles", "open_engine"]
