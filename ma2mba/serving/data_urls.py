"""`data:` URLs: media within a request."""

import base64
import binascii
from collections.abc import Iterator

from ma2mba.serving.errors import Refused

SLICE = 4 << 18
"""Letters that are decoded at once, a multiple of four."""


def encoded_start(url: str) -> int:
    """Return where the base64 text of a `data:` URL starts. Raise Refused if it has none."""
    comma = url.find(",", 0, 200)
    if comma < 0 or not url[:comma].lower().endswith(";base64"):
        raise Refused("data URL: not base64. Write data:video/mp4;base64,... or upload the file", code="invalid_url")
    return comma + 1


def decoded_bytes(url: str) -> int:
    """Return at most how many bytes a `data:` URL holds. Raise Refused if it holds no base64 text."""
    return (len(url) - encoded_start(url)) * 3 // 4


def decode(url: str) -> Iterator[bytes]:
    """Yield the bytes of a `data:` URL in blocks. Raise Refused for what is not base64."""
    for at in range(encoded_start(url), len(url), SLICE):
        try:
            yield base64.b64decode(url[at : at + SLICE], validate=True)
        except (binascii.Error, ValueError) as error:
            raise Refused(f"data URL: damaged base64 ({error}). Encode the file again", code="invalid_url") from None
