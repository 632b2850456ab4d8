"""Exports: a fine-tuned model as files that other software loads; one process for each export.

The process computes on the CPU and in float32, whatever the worker trains on, and ends with its
export. It has no database and publishes nothing: it writes into a directory that it is given, and
says what it wrote. `app.domain.exports.EXPORT_FORMATS` lists the formats by dotted path.
"""
