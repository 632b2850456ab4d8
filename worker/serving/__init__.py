"""The built-in engine: generates from base models and their adapters in mixed batches."""
