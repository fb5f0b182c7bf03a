"""Who asks: the tokens of a file, or addresses."""

import hashlib
import hmac
from pathlib import Path

from starlette.requests import HTTPConnection

from ma2mba.errors import UserError
from ma2mba.files import read_bounded
from ma2mba.serving.errors import Refused

SHORTEST = 16
"""Characters of the shortest token that is accepted."""
FILE_BYTES = 1 << 20
"""Bytes of the largest token file."""


class Clients:
    """Turns a request into the name of a client, whose limits and uploads count.

    tokens    token -> name of its client; empty: nobody needs a token, and clients are named by their address
    """

    def __init__(self, tokens: dict[str, str]):
        self._names = {_digest(token): name for token, name in tokens.items()}

    @property
    def needs_token(self) -> bool:
        return bool(self._names)

    def of_token(self, token: str) -> str | None:
        """Return the client of a token, None if no client has it. Takes the same time for every token."""
        given, found = _digest(token), None
        for digest, name in self._names.items():
            if hmac.compare_digest(digest, given):
                found = name
        return found

    def of_request(self, request: HTTPConnection) -> str:
        """Return the client that sent a request. Raise Refused (401) for a missing or wrong token."""
        if not self.needs_token:
            return f"address:{request.client.host if request.client else 'unknown'}"
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Refused("no token. Send the header `Authorization: Bearer TOKEN`", 401, "missing_api_key")
        client = self.of_token(token.strip())
        if client is None:
            raise Refused("this token is unknown. Ask the server's operator for one", 401, "invalid_api_key")
        return client


def read_tokens(path: Path) -> dict[str, str]:
    """Return the tokens of a file, one a line, as token -> client. A line is `TOKEN` or `NAME TOKEN`."""
    tokens: dict[str, str] = {}
    names: set[str] = set()
    for number, line in enumerate(_lines(path), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2:
            raise UserError(f"{path}:{number}: has {len(words)} words. Write TOKEN, or NAME TOKEN")
        token, name = words[-1], words[0] if len(words) == 2 else f"line {number}"
        if len(token) < SHORTEST:
            raise UserError(
                f"{path}:{number}: this token is too short: it can be guessed. Use {SHORTEST} characters or more"
            )
        if token in tokens or name in names:
            raise UserError(f"{path}:{number}: repeats a token or a name. Give each client its own")
        tokens[token] = f"token:{name}"
        names.add(name)
    if not tokens:
        raise UserError(f"{path}: has no token. Write one a line, for example the output of `openssl rand -hex 32`")
    return tokens


def _lines(path: Path) -> list[str]:
    try:
        return read_bounded(path, FILE_BYTES).decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not ASCII text. Write one token a line") from None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
