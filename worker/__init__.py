"""The side of Tunesmith that holds devices: supervisor, trainer and engine.

Only `worker.conversion`, `worker.trunk`, `worker.training` and `worker.serving` import torch; the
supervising process never does.
"""
