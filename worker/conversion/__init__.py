"""Converters: they turn what a source brought into a directory as transformers writes it.

Each is one file with `convert(fetched, into)`: it reads the files of one directory and writes
config.json, safetensors and what else belongs to the model into another, empty one. It runs none
of the model's code and unpickles nothing. `app/base_models/converters.py` lists them by name.
"""
