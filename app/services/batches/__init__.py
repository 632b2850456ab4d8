"""Batches: files of requests, answered at low priority by whichever API process has time.

`requests` takes them in; `runner` claims one by its lease and has it checked (`validation`), asked
line by line (`asking`, which writes down what is answered in `ledger`) and brought to its end
(`ending`).
"""
