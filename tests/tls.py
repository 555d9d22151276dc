"""TLS for tests: an authority with an intermediate one, certificates of both, servers that speak it."""

from __future__ import annotations

import ssl
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.harness import Server, need

if TYPE_CHECKING:
    from pathlib import Path

NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"
CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")


class Pair(NamedTuple):
    """A certificate with its chain, and its key."""

    cert: Path
    key: Path

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--tls-cert", str(self.cert), "--tls-key", str(self.key))


class Authority:
    """Issues certificates for ``localhost``, into ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.root = self._make("root", "-addext", "basicConstraints=critical,CA:TRUE").cert
        middle = self._make("middle", "-addext", "basicConstraints=critical,CA:TRUE", by="root")
        self._middle = middle.cert.read_text("ascii")

    def issue(self, name: str) -> Pair:
        """A new certificate; files of this name are replaced."""
        pair = self._make(name, "-addext", NAMES, "-addext", "basicConstraints=CA:FALSE", by="middle")
        pair.cert.write_text(pair.cert.read_text("ascii") + self._middle, "ascii")
        return pair

    def trust(self) -> ssl.SSLContext:
        """A client that trusts the root and nobody else."""
        return ssl.create_default_context(cafile=str(self.root))

    def _make(self, name: str, *more: str, by: str | None = None) -> Pair:
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        issuer: tuple[Any, ...] = ()
        if by is not None:
            issuer = ("-CA", self._folder / f"{by}.pem", "-CAkey", self._folder / f"{by}.key")
        openssl("req", "-x509", *CURVE, "-nodes", "-subj", f"/CN={name}", "-days", "2", *issuer,
                "-keyout", pair.key, "-out", pair.cert, *more)  # fmt: skip
        return pair


class TlsServer(Server):
    """``turnlog serve`` that speaks TLS with ``pair``."""

    def __init__(self, url: str, authority: Authority, pair: Pair, *arguments: str, **more: Any) -> None:
        super().__init__(url, *pair.flags, *arguments, **more)
        self.trust = authority.trust()


def openssl(*arguments: Any) -> None:
    """Run ``openssl``."""
    done = subprocess.run(
        [need("openssl"), *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
