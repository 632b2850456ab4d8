"""Metrics of text similarity, one library each; imported when one is first asked for.

Each takes a text and its reference and returns 0 (nothing in common) to 1 (the same).
"""
