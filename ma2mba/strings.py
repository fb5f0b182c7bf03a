"""Small functions for texts that somebody else wrote. A model folder has a copy of this file: it imports nothing."""

SHOWN = 200
"""Most characters of a foreign value that a message shows."""


def shorten(text: str, most: int = SHOWN) -> str:
    """Return a text in at most about `most` characters: of a longer one, its beginning and its end."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}... ({len(text) - 2 * half:,} more characters) ...{text[-half:]}"


def fits_utf8(text: str) -> bool:
    r"""Return False if UTF-8 cannot encode `text`: JSON may hold half a surrogate pair ("\ud83d" alone)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
