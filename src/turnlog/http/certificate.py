"""The server's certificate and private key, in files: loaded at the start, and again when they are renewed."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path
from typing import NoReturn

import structlog

from turnlog.errors import SettingError

_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secrecy and authenticated encryption, no other. TLS 1.3 has nothing else."""
_ALPN = ("http/1.1",)
_READABLE_BY_ALL = stat.S_IROTH
_log = structlog.get_logger()

_Stamp = tuple[tuple[int, int, int], ...]


class Certificate:
    """A certificate with its chain, and its key, both as PEM files. ``context`` is for connections that begin now.

    Raises SettingError, naming the file, where one cannot be read, the key is encrypted or is another certificate's.
    """

    def __init__(self, cert: str, key: str) -> None:
        self._cert = Path(cert)
        self._key = Path(key)
        self._seen = self._stamp()
        self.context = _load(self._cert, self._key)
        if self._key.stat().st_mode & _READABLE_BY_ALL:
            _log.warning("tls_key_readable", file=key, hint="every user of this machine can read the key: chmod o-r")

    def renew(self) -> None:
        """Load the files again where they are others than before. Where that fails, the old ones stay in force."""
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return
            self._seen = stamp
            self.context = _load(self._cert, self._key)
        except SettingError as error:  # one of the two may be about to follow: its change is seen, too
            _log.warning("certificate_not_renewed", error=str(error))
        else:
            _log.info("certificate_renewed", file=str(self._cert))

    def _stamp(self) -> _Stamp:
        """What differs once one of the files is another; a file that is not there has a stamp, too."""
        stamps = []
        for path in (self._cert, self._key):
            try:
                found = path.stat()
            except OSError as error:
                stamps.append((0, 0, error.errno or 0))
            else:
                stamps.append((found.st_ino, found.st_size, found.st_mtime_ns))
        return tuple(stamps)


def certificate(cert: str, key: str) -> Certificate | None:
    """The certificate that two settings name; ``None`` where they name none. Raises SettingError as Certificate."""
    if not cert and not key:
        return None
    if not cert or not key:
        given, other = ("tls_cert", "tls_key") if cert else ("tls_key", "tls_cert")
        raise SettingError(f"{given} goes with {other}: both name PEM files, or neither")
    return Certificate(cert, key)


def _load(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(list(_ALPN))
    for path, what, mark in ((cert, "certificate", b"CERTIFICATE-----"), (key, "private key", b"PRIVATE KEY-----")):
        if path.exists() and not path.is_file():  # reading a pipe would wait for whoever writes into it
            raise SettingError(f"cannot read {path}: it is no regular file")
        try:
            text = path.read_bytes()
        except OSError as error:
            raise SettingError(f"cannot read {path}: {error.strerror}") from error
        if mark not in text:
            raise SettingError(f"{path} holds no {what} as PEM: expected a line -----BEGIN … {mark.decode()}")
    try:
        # Without a function, OpenSSL would ask whoever sits at the terminal.
        context.load_cert_chain(cert, key, password=lambda: _encrypted(key))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise SettingError(f"the key in {key} is not that of the certificate in {cert}") from error
        reason = (error.reason or "").replace("_", " ").lower() or "not a PEM file of the kind"
        raise SettingError(f"cannot use the certificate in {cert} with the key in {key}: {reason}") from error
    return context


def _encrypted(key: Path) -> NoReturn:
    raise SettingError(
        f"the key in {key} is encrypted, and a server starts without anybody to ask: decrypt it "
        "(openssl pkey -in KEY -out PLAIN) and let the file's permissions protect it"
    )
