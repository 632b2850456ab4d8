"""Inference: one client for every engine that speaks OpenAI's wire with vLLM's adapter calls."""

from app.inference.port import AdapterFiles, EngineClient, open_engine

__all__ = ["AdapterFiles", "EngineClient", "open_engine"]
