"""Text that every database can keep: Postgres takes no NUL, and none takes half a character."""


def storable(text: str) -> str:
    """Return a text whose NUL characters and lone surrogates are spelt out."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


def check_storable(text: str) -> str:
    """Return a text that can be kept as it is. Raises: ValueError, saying what is expected."""
    if "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("text without NUL characters and lone surrogates")
    return text
