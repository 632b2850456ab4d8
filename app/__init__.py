"""The torch-free side of Tunesmith: HTTP API, use cases, database, storage and command line."""
