"""Fuzzy match by rapidfuzz."""

from rapidfuzz import fuzz


def fuzzy_match(text: str, reference: str) -> float:
    """The share of characters that stay when one text is edited into the other, by inserting and
    deleting only."""
    return fuzz.ratio(text, reference) / 100
