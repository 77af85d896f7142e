"""Section `[server]`: where the server listens and how much it takes on."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from framework.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Section `[server]`.

    Attributes:
        host, port: address to listen on; port 0 takes a free one.
        allow_remote: listen on an address that other machines reach. There are no keys yet, so whoever reaches it may
            use it.
        allowed_hosts: names, besides the loopback ones and `host`, that a request's Host header may carry.
        collections: collections offered as models `collection:NAME`; empty: all of them.
        adapters: folder whose subfolders may be added as adapters over HTTP; relative to the configuration file. None:
            no adapter is taken over HTTP.
        max_body: largest request body in bytes.
        max_concurrent: requests that compute at one time.
        max_waiting: further requests that may wait for their turn; those beyond get 429.
        body_timeout: seconds within which a request's body must have arrived.
        stall_timeout: seconds that a client may leave its answer unread before the work is given up.
        grace: seconds that running requests get to finish in when the server is told to stop.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    allow_remote: bool = False
    allowed_hosts: tuple[str, ...] = ()
    collections: tuple[str, ...] = ()
    adapters: Path | None = None
    max_body: int = 8 * 1024 * 1024
    max_concurrent: int = 64
    max_waiting: int = 64
    body_timeout: float = 30.0
    stall_timeout: float = 60.0
    grace: int = 30

    def __post_init__(self) -> None:
        _require(0 <= self.port <= 65535, "port", self.port, "between 0 and 65535")
        _require(self.max_body >= 1024, "max_body", self.max_body, "1024 bytes or more")
        _require(self.max_concurrent >= 1, "max_concurrent", self.max_concurrent, "1 or more")
        _require(self.max_waiting >= 0, "max_waiting", self.max_waiting, "0 or more")
        _require(self.body_timeout > 0, "body_timeout", self.body_timeout, "more than 0 seconds")
        _require(self.stall_timeout > 0, "stall_timeout", self.stall_timeout, "more than 0 seconds")
        _require(self.grace >= 1, "grace", self.grace, "1 second or more")

    def check_reach(self) -> None:
        """Refuse an address that other machines reach, unless that was asked for.

        Raises:
            ConfigError: the host is not a loopback address and `allow_remote` is not set.
        """
        if not is_loopback(self.host) and not self.allow_remote:
            raise ConfigError(
                f"The host {self.host!r} can be reached by other machines, and the server asks for no key yet.",
                hint="Keep 127.0.0.1, or pass --allow-remote (server.allow_remote = true) behind a proxy of your own.",
                field="server.host",
            )


def is_loopback(host: str) -> bool:
    """Whether an address or name reaches this machine alone; of names only localhost is taken at its word."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _require(valid: bool, name: str, value: object, expected: str) -> None:
    if not valid:
        raise ConfigError(f"server.{name} must be {expected}, got {value!r}.", field=f"server.{name}")
