"""URLs of webhooks: one that is accepted leads to one place, whoever reads it, and that place is a public one."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

import urllib3
import yarl

from turnlog.addresses import MAX_URL_CHARS, Destination, RefusedUrlError, check_url, refuse_reason

_NEVER = [ipaddress.ip_network(text) for text in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "224.0.0.0/4",
                                                  "ff00::/8", "0.0.0.0/8", "100.100.100.200/32")]  # fmt: skip


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """What the C library or Python would take a host for, in whatever spelling."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host.removesuffix(".")))
    except OSError:
        return None


def _behind(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The address, and each that is written into it."""
    if isinstance(ip, ipaddress.IPv4Address):
        return [ip]
    low = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    into = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    if (int(ip) >> 32) & 0xFDFF_FFFF == 0x5EFE or ip in ipaddress.ip_network("64:ff9b::/96"):
        into.append(low)
    return [ip, *(one for one in into if one is not None)]


def _check_accepted(checked: Destination, *, allow_private: bool) -> None:
    url = checked.url
    assert check_url(url, allow_private=allow_private) == checked, "its one spelling has another"
    for parsed in (urlsplit(url), urllib3.util.parse_url(url), yarl.URL(url)):
        assert parsed.scheme == checked.scheme, parsed
        port = parsed.port or {"https": 443, "http": 80}[checked.scheme]
        host = parsed.raw_host if isinstance(parsed, yarl.URL) else parsed.hostname
        assert ((host or "").strip("[]"), port) == (checked.host.strip("[]"), checked.port), parsed
    ip = _address(checked.host)
    for one in [] if ip is None else _behind(ip):
        assert not any(one in network for network in _NEVER if network.version == one.version), one
        assert refuse_reason(str(one), allow_private=allow_private) is None, one
        assert allow_private or (one.is_global and not one.is_multicast), one


def check(content: bytes) -> None:
    """W05. No spelling of a URL gets a private address past the check, and readers of URLs agree on what passes."""
    text = content.decode("utf-8", "replace")
    for allow_private in (False, True):
        try:
            checked = check_url(text, allow_private=allow_private)
        except RefusedUrlError:
            continue
        assert len(text) <= MAX_URL_CHARS
        _check_accepted(checked, allow_private=allow_private)


WORDS = (b"https://", b"http://", b"127.0.0.1", b"169.254.169.254", b"[::1]", b"[::ffff:127.0.0.1]", b"0x7f.1",
         b"0177.0.0.1", b"2130706433", b"localhost", b"10.0.0.1", b"[64:ff9b::7f00:1]", b"[2002:7f00:1::]",
         b"[fe80::1%25lo]", b"@", b":", b"//", b"\\", b"#", b"?", b"%2e", b"%40", b"..", b".", b"xn--", b":443",
         b":0", b"[", b"]", b"::", b"ffff:", "\uff0e".encode(), "\u2460".encode(), b"\t", b"8.8.8.8",
         b"2606:4700::1111", b"user:pass@", b"0x", b"1.")  # fmt: skip
