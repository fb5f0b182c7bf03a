"""The settings of a server: the options of `ma2mba serve`, checked."""

import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from ma2mba.errors import UserError

GB = 10**9
HOST_NAME = re.compile(r"\.?[\w-]+(\.[\w-]+)*\.?")


def default_cache() -> Path:
    """Return the folder for states and uploads of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ma2mba" / "serve"


@dataclass(frozen=True)
class Settings:
    """How a server listens, whom it trusts and what it may use. Raise UserError for values that do not fit together.

    token_file          tokens of clients, one a line; None: no token is asked for
    no_auth             serve beyond this machine without tokens
    proxies             addresses of reverse proxies whose X-Forwarded-For is believed
    media_root          folder below which `file:` URLs may name files; None: no file
    domains             hosts from which media may be fetched; a leading dot includes subdomains. Empty: none
    allow_http          fetch `http:` URLs too
    cache               folder for states (`states/`) and uploads (`uploads/`)
    cache_gb            GB of states on disk
    upload_total_gb     GB of uploads of all owners together
    client_upload_gb    GB of uploads of one owner
    keep_minutes        minutes after its last use for which an upload, and the state of its video, is kept
    places              answers that are written at once
    waiting             questions, and readings, that may wait for a place
    client_places       answers of one client that are written or wait
    client_readings     readings of one client that run or wait
    grace_seconds       seconds that answers may take to end when the server is stopped
    """

    model: Path
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    no_auth: bool = False
    proxies: tuple[str, ...] = ()
    media_root: Path | None = None
    domains: tuple[str, ...] = ()
    allow_http: bool = False
    cache: Path = field(default_factory=default_cache)
    cache_gb: float = 50
    max_video_hours: float = 8
    max_upload_gb: float = 4
    upload_total_gb: float = 100
    client_upload_gb: float = 20
    keep_minutes: float = 120
    places: int = 32
    waiting: int = 256
    client_places: int = 64
    client_readings: int = 64
    max_tokens: int = 4096
    grace_seconds: float = 30
    name: str = ""
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if not self.token_file and not self.no_auth and not is_loopback(self.host):
            raise UserError(
                f"--host {self.host}: other machines can reach this address. Give --token-file FILE with a token for "
                "each client, or --no-auth to serve everybody"
            )
        if self.token_file and self.no_auth:
            raise UserError("--no-auth: takes no --token-file. Leave one of them out")
        for domain in self.domains:
            if not HOST_NAME.fullmatch(domain):
                raise UserError(f"--allow-domain {domain}: not a host name. Write example.org, or .example.org")

    @property
    def model_name(self) -> str:
        """The id of the model that clients see."""
        return self.name or self.model.resolve().name

    @property
    def host_names(self) -> frozenset[str] | None:
        """The names under which the server may be asked for. None: all, because tokens or the operator protect it."""
        if self.token_file or self.no_auth:
            return None
        return frozenset({"localhost", "127.0.0.1", "::1", self.host.strip("[]").lower()})

    @property
    def states(self) -> Path:
        return self.cache / "states"

    @property
    def uploads(self) -> Path:
        return self.cache / "uploads"

    @property
    def max_upload(self) -> int:
        """Bytes of an upload, or of a fetched file."""
        return int(self.max_upload_gb * GB)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
