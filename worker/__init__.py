"""The side of Tunesmith that holds devices: supervisor, trainer and engine.

Only `worker.conversion`, `trunk`, `generation`, `tasks`, `tuning`, `training` and `serving` import
torch; the supervising process never does.
"""
