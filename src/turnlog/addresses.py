"""Where this server may send what an account's owner asks it to: which addresses and which URLs. No I/O, no look-ups.

Whoever may register a webhook must not reach, through this server, what only this server can reach: its own host, its
network, the cloud's metadata service. An address is judged by what it is, and by nothing that somebody calls it; so the
judgement that counts is the one on the address that is connected to (sending.py), and what is refused here on the sight
of a URL is a service to people.

Sources: the special-purpose registries of IANA (RFC 6890 and what it has taken in since), RFC 4291 (IPv6), RFC 6052 and
RFC 8215 (NAT64), RFC 3056 (6to4), RFC 4380 (Teredo), RFC 5214 (ISATAP), RFC 9602 (SRv6), RFC 3986 (URLs); the metadata
services as their operators describe them.
"""

from __future__ import annotations

import ipaddress
import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import urlsplit

import msgspec

MAX_URL_CHARS = 2048
MAX_HOST_CHARS = 253
_SCHEMES = {"https": 443, "http": 80}

# First row that fits decides, so what is narrow stands above what is wide. The last column: whether an operator who
# allows private addresses means it.
_METADATA = "a cloud's metadata service"
_SPECIAL_4: tuple[tuple[str, str, bool], ...] = (
    ("169.254.169.254/32", _METADATA, False),  # AWS, Azure, Google, Oracle, DigitalOcean, Hetzner, OpenStack
    ("169.254.170.0/24", _METADATA, False),  # AWS: credentials of containers
    ("100.100.100.200/32", _METADATA, False),  # Alibaba
    ("192.0.0.192/32", _METADATA, False),  # Oracle, of old
    ("168.63.129.16/32", _METADATA, False),  # Azure: public by its number, the virtual machine's host by its meaning
    ("0.0.0.0/8", "unspecified", False),
    ("10.0.0.0/8", "private", True),
    ("100.64.0.0/10", "shared by a provider's customers (CGNAT)", True),
    ("127.0.0.0/8", "loopback", True),
    ("169.254.0.0/16", "link-local", False),
    ("172.16.0.0/12", "private", True),
    ("192.0.0.0/24", "reserved for protocols", False),
    ("192.0.2.0/24", "for documentation", False),
    ("192.88.99.0/24", "a 6to4 relay", False),
    ("192.168.0.0/16", "private", True),
    ("198.18.0.0/15", "for benchmarks", False),
    ("198.51.100.0/24", "for documentation", False),
    ("203.0.113.0/24", "for documentation", False),
    ("224.0.0.0/4", "multicast", False),
    ("255.255.255.255/32", "broadcast", False),
    ("240.0.0.0/4", "reserved", False),
)
_SPECIAL_6: tuple[tuple[str, str, bool], ...] = (
    ("fd00:ec2::/32", _METADATA, False),  # AWS, with ::254 the metadata and ::23 the credentials of containers
    ("fd20:ce::254/128", _METADATA, False),  # Google
    ("fd00:c1::a9fe:a9fe/128", _METADATA, False),  # Oracle
    ("fd00:42::42/128", _METADATA, False),  # Scaleway
    ("::/128", "unspecified", False),
    ("::1/128", "loopback", True),
    ("::/96", "an IPv4 address in disguise (IPv4-compatible)", False),
    ("::ffff:0:0:0/96", "an IPv4 address in disguise (SIIT)", False),
    ("64:ff9b::/96", "an IPv4 address in disguise (NAT64)", False),
    ("64:ff9b:1::/48", "an IPv4 address in disguise (NAT64)", False),
    ("100::/64", "a place where packets vanish", False),
    ("100:0:0:1::/64", "for experiments", False),
    ("2001::/32", "an IPv4 address in disguise (Teredo)", False),
    ("2001:2::/48", "for benchmarks", False),
    ("2001::/23", "reserved for protocols", False),
    ("2001:db8::/32", "for documentation", False),
    ("2002::/16", "an IPv4 address in disguise (6to4)", False),
    ("3fff::/20", "for documentation", False),
    ("5f00::/16", "a segment's identifier (SRv6)", False),
    ("fc00::/7", "private (unique local)", True),
    ("fe80::/10", "link-local", False),
    ("fec0::/10", "private (site-local)", False),
    ("ff00::/8", "multicast", False),
)
_NETWORKS_4 = tuple((IPv4Network(network), reason, opened) for network, reason, opened in _SPECIAL_4)
_NETWORKS_6 = tuple((IPv6Network(network), reason, opened) for network, reason, opened in _SPECIAL_6)
_GLOBAL_UNICAST_6 = IPv6Network("2000::/3")
"""All that IANA gives out; whatever else is not in the table above is nobody's yet."""
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})
"""The upper half of an interface identifier whose lower half is an IPv4 address."""


_UNLESS = ", or have the operator set allow_private_webhooks"


class RefusedUrlError(ValueError):
    """The URL is not one that this server sends to; the message is for its author, and has no credentials in it."""


class Destination(msgspec.Struct, frozen=True):
    """A URL that was looked at: in the one spelling that is used from here on, and its pieces."""

    url: str
    scheme: str
    host: str
    port: int


def refuse_reason(address: str, *, allow_private: bool = False) -> str | None:
    """Why nothing is sent to ``address``, as the end of "address … is"; ``None`` where it is anybody's public one.

    ``allow_private`` opens loopback, private, unique local and shared addresses and nothing else: not link-local ones
    and not the metadata services. What is no plain literal address, such as a name or one with a zone, is refused.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "no IP address"
    if isinstance(ip, IPv6Address):
        if ip.scope_id is not None:
            return "bound to a zone"
        if ip.ipv4_mapped is None:
            return _refused_6(ip, allow_private=allow_private)
        ip = ip.ipv4_mapped
    for network, reason, opened in _NETWORKS_4:
        if ip in network:
            return None if opened and allow_private else reason
    return None


def _refused_6(ip: IPv6Address, *, allow_private: bool) -> str | None:
    if (int(ip) >> 32) & 0xFFFF_FFFF in _ISATAP:
        return "an IPv4 address in disguise (ISATAP)"
    for network, reason, opened in _NETWORKS_6:
        if ip in network:
            return None if opened and allow_private else reason
    return None if ip in _GLOBAL_UNICAST_6 else "not given out to anybody"


# URLs.

_URL_CHARS = re.compile(r"(?:[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})+", re.ASCII)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)


def check_url(url: str, *, allow_private: bool = False) -> Destination:
    """The pieces of ``url``. Raises RefusedUrlError where it is malformed, unsafe or plainly leads where it must not.

    Without ``allow_private`` only ``https`` is accepted. The host is a name, four decimal numbers or a bracketed IPv6
    address; the other spellings of an IPv4 address (``inet_aton``'s: one number, octal, hexadecimal) are refused, since
    readers of URLs do not agree on what they mean.
    """
    if len(url) > MAX_URL_CHARS:
        raise RefusedUrlError(f"the URL has {len(url)} characters: at most {MAX_URL_CHARS} are accepted")
    if not _URL_CHARS.fullmatch(url):
        raise RefusedUrlError("a URL is made of ASCII letters, digits and -._~:/?[]@!$&'()*+,;= and %-escapes; "
                              "write a host with other characters as xn--…")  # fmt: skip
    if "#" in url:
        raise RefusedUrlError("leave out the fragment (# and what follows it): it is never sent")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise RefusedUrlError("the brackets around the host do not hold an IPv6 address") from None
    scheme = parts.scheme
    if scheme not in _SCHEMES or (scheme == "http" and not allow_private):
        raise RefusedUrlError(f"the URL must begin with https://{_UNLESS}")
    if "@" in parts.netloc:
        raise RefusedUrlError("leave the credentials out of the URL: every request is signed, and that identifies it")
    host, port = _host_and_port(parts.netloc, _SCHEMES[scheme])
    written = _checked_host(host, allow_private=allow_private)
    netloc = written if port == _SCHEMES[scheme] else f"{written}:{port}"
    query = f"?{parts.query}" if parts.query else ""
    return Destination(f"{scheme}://{netloc}{parts.path or '/'}{query}", scheme, written, port)


def _host_and_port(netloc: str, default_port: int) -> tuple[str, int]:
    """The host as it is written, brackets included, and the port."""
    if netloc.startswith("["):
        inside, _, rest = netloc.partition("]")
        host, port = f"{inside}]", rest
        if port and not port.startswith(":"):
            raise RefusedUrlError("after the brackets around the host there may be a port and nothing else")
        port = port[1:]
    else:
        host, _, port = netloc.partition(":")
    if not host:
        raise RefusedUrlError("the URL names no host")
    if not port:
        return host, default_port
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        raise RefusedUrlError("the port must be a number from 1 to 65535")
    return host, int(port)


def _checked_host(host: str, *, allow_private: bool) -> str:
    """``host`` in its one spelling. Raises RefusedUrlError."""
    if host.startswith("["):
        return f"[{_checked_address_6(host[1:-1], allow_private=allow_private)}]"
    name = host.lower().removesuffix(".")
    if "%" in name:
        raise RefusedUrlError("write the host without %-escapes")
    labels = name.split(".")
    if len(name) > MAX_HOST_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
        raise RefusedUrlError("the host is neither a name (labels of 1 to 63 characters a-z, 0-9 and -, at most 253 "
                              "together) nor an address")  # fmt: skip
    if _ends_in_number(labels[-1]):
        _check_address_4(name, allow_private=allow_private)
    elif labels[-1] == "localhost" and not allow_private:
        raise RefusedUrlError(f"localhost is this server itself: name a host on the internet{_UNLESS}")
    return name


def _ends_in_number(label: str) -> bool:
    """Whether a host whose last label this is gets read as an IPv4 address by who follows the URL standard (WHATWG)."""
    return label.isdecimal() or re.fullmatch(r"0x[0-9a-f]*", label) is not None


def _check_address_4(name: str, *, allow_private: bool) -> None:
    try:
        ip = IPv4Address(name)
    except ValueError:
        meant = _inet_aton(name)
        hint = "" if meant is None else f", which some read as {meant}"
        raise RefusedUrlError(f"the host {name}{hint}, is not a name: write an address as four decimal numbers, "
                              "without leading zeros") from None  # fmt: skip
    _check_address(str(ip), allow_private=allow_private)


def _checked_address_6(text: str, *, allow_private: bool) -> str:
    if "%" in text:
        raise RefusedUrlError("leave out the address's zone (% and what follows it)")
    try:
        ip = IPv6Address(text)
    except ValueError:
        raise RefusedUrlError("the brackets around the host do not hold an IPv6 address") from None
    _check_address(str(ip), allow_private=allow_private)
    return str(ip)


def _check_address(text: str, *, allow_private: bool) -> None:
    reason = refuse_reason(text, allow_private=allow_private)
    if reason is not None:
        allowed = allow_private or refuse_reason(text, allow_private=True) is not None
        raise RefusedUrlError(f"address {text} is {reason}: name a host on the internet{'' if allowed else _UNLESS}")


def _inet_aton(name: str) -> IPv4Address | None:
    """What the C library would take ``name`` for: one to four numbers, the last of which fills what is left."""
    numbers = []
    for part in name.split("."):
        if "-" in part or "_" in part:  # which Python reads in numbers
            return None
        base = 16 if part.startswith("0x") else 8 if part.startswith("0") else 10
        try:
            numbers.append(int(part.removeprefix("0x") or "0", base))
        except ValueError:
            return None
    *first, last = numbers
    if len(first) > 3 or any(number > 255 for number in first) or last >= 256 ** (4 - len(first)):
        return None
    return IPv4Address(sum(number << (24 - 8 * place) for place, number in enumerate(first)) + last)
