"""Which addresses and URLs webhooks may have. That it holds for what is connected to: test_sending.py."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from turnlog.addresses import RefusedUrlError, check_url, refuse_reason

PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0",
          "192.167.255.255", "192.0.1.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "9.255.255.255",
          "11.0.0.0", "2606:4700:4700::1111", "2a00:1450:4001::200e", "2001:200::1", "::ffff:8.8.8.8"]  # fmt: skip
OPENED = ["127.0.0.1", "127.255.255.255", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "100.64.0.1",
          "100.127.255.255", "::1", "fd12:3456::1", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"]  # fmt: skip
"""What ``allow_private`` opens."""
NEVER = ["0.1.2.3", "0.255.255.255", "169.254.169.254", "169.254.170.2", "169.254.0.1", "100.100.100.200",
         "168.63.129.16", "192.0.0.192", "192.0.0.1", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255",
         "198.51.100.1",
         "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
         "::", "::7f00:1", "::8.8.8.8", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1",
         "64:ff9b::808:808", "64:ff9b:1::a00:1", "100::1", "100:0:0:1::1", "2001:0:4136::1", "2001::1",
         "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:808:808::1", "3fff::1",
         "5f00::1",
         "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fe80::1", "fe80::1%lo", "fec0::1", "ff02::1", "4000::1",
         "2606:4700::5efe:7f00:1", "2606:4700::200:5efe:808:808", "e000::1", "200::1"]  # fmt: skip
NO_ADDRESS = ["localhost", "", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.0.0.1 ", "[::1]", "1.2.3.4.5"]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_sent_to(address: str) -> None:
    assert refuse_reason(address) is None
    assert refuse_reason(address, allow_private=True) is None


@pytest.mark.parametrize("address", OPENED)
def test_private_addresses_are_sent_to_only_where_the_operator_allows_it(address: str) -> None:
    assert refuse_reason(address)
    assert refuse_reason(address, allow_private=True) is None


@pytest.mark.parametrize("address", [*NEVER, *NO_ADDRESS])
def test_other_addresses_are_never_sent_to(address: str) -> None:
    assert refuse_reason(address)
    assert refuse_reason(address, allow_private=True)


@given(st.ip_addresses())
@example(ipaddress.ip_address("2001:1::1"))
def test_nothing_is_public_that_python_does_not_take_for_public(ip: ipaddress.IPv4Address) -> None:
    if refuse_reason(str(ip)) is None:
        assert ip.is_global
        assert not ip.is_multicast


@pytest.mark.parametrize(
    ("url", "normalised"),
    [
        ("https://example.com", "https://example.com/"),
        ("HTTPS://Example.COM.:443/a/../b?c=%2F&d#".removesuffix("#"), "https://example.com/a/../b?c=%2F&d"),
        ("https://example.com:8443/hook", "https://example.com:8443/hook"),
        ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/"),
        ("https://8.8.8.8/", "https://8.8.8.8/"),
        ("https://[2606:4700:4700:0:0:0:0:1111]:444/", "https://[2606:4700:4700::1111]:444/"),
        ("https://a_b.example/", "https://a_b.example/"),
        ("https://1.example/", "https://1.example/"),
        ("https://0x7f.example/", "https://0x7f.example/"),
    ],
)
def test_a_good_url_has_one_spelling(url: str, normalised: str) -> None:
    assert check_url(url).url == normalised
    assert check_url(normalised).url == normalised


BAD_URLS = [
    ("http://example.com/", "https://"),
    ("ftp://example.com/", "https://"),
    ("example.com", "https://"),
    ("//example.com", "https://"),
    ("", "ASCII"),
    ("https:///path", "no host"),
    ("https://:443/", "no host"),
    ("https://./", "neither a name"),
    ("https://user@example.com/", "credentials"),
    ("https://user:pass@example.com/", "credentials"),
    ("https://@example.com/", "credentials"),
    ("https://example.com@10.0.0.1/", "credentials"),
    ("https://example.com/#fragment", "fragment"),
    ("https://example.com/#", "fragment"),
    ("https://example.com:0/", "port"),
    ("https://example.com:65536/", "port"),
    ("https://example.com:4_3/", "port"),
    ("https://example.com:+443/", "port"),
    ("https://example.com:٤٤/", "ASCII"),
    ("https://exa mple.com/", "ASCII"),
    ("https://example.com/\r\nX: y", "ASCII"),
    ("https://example.com/\n", "ASCII"),
    ("https://example.com\\@10.0.0.1/", "ASCII"),
    ("https://bücher.example/", "xn--"),
    ("https://①②⑦.0.0.1/", "ASCII"),
    ("https://example.com/%zz", "ASCII"),
    ("https://ex%61mple.com/", "%-escapes"),
    ("https://127.0.0.%31/", "%-escapes"),
    ("https://-a.example/", "neither a name"),
    ("https://a..example/", "neither a name"),
    (f"https://{'a' * 64}.example/", "neither a name"),
    (f"https://{'a.' * 126}com/", "neither a name"),
    (f"https://example.com/{'a' * 2048}", "2048"),
    ("https://localhost/", "localhost"),
    ("https://LOCALHOST./", "localhost"),
    ("https://a.localhost:8443/", "localhost"),
    ("https://127.0.0.1/", "loopback"),
    ("https://127.0.0.1./", "loopback"),
    ("https://10.1.2.3/", "private"),
    ("https://169.254.169.254/latest/meta-data", "metadata"),
    ("https://0.0.0.0/", "unspecified"),
    ("https://2130706433/", "127.0.0.1"),
    ("https://017700000001/", "127.0.0.1"),
    ("https://0x7f000001/", "127.0.0.1"),
    ("https://0x7F.1/", "127.0.0.1"),
    ("https://127.1/", "127.0.0.1"),
    ("https://0177.0.0.1/", "127.0.0.1"),
    ("https://127.0.0.01/", "127.0.0.1"),
    ("https://0x/", "0.0"),
    ("https://134744072/", "8.8.8.8"),
    ("https://256.256.256.256/", "four decimal"),
    ("https://1.2.3.4.5/", "four decimal"),
    ("https://example.1/", "four decimal"),
    ("https://0x-f.1/", "four decimal"),
    ("https://0-7.0x1/", "four decimal"),
    ("https://1_0.1/", "four decimal"),
    ("https://[::1]/", "loopback"),
    ("https://[::ffff:7f00:1]/", "loopback"),
    ("https://[::ffff:127.0.0.1]/", "loopback"),
    ("https://[::ffff:169.254.169.254]/", "metadata"),
    ("https://[64:ff9b::a00:1]/", "NAT64"),
    ("https://[2002:a00:1::]/", "6to4"),
    ("https://[fe80::1%25lo]/", "zone"),
    ("https://[fe80::1]/", "link-local"),
    ("https://[::1/", "brackets"),
    ("https://[example.com]/", "brackets"),
    ("https://[v1.a]/", "brackets"),
    ("https://[2606:4700::1]a:443/", "brackets"),
    ("https://a[2606:4700::1]/", ""),
]


@pytest.mark.parametrize(("url", "part"), BAD_URLS)
def test_a_bad_url_is_refused_with_its_reason(url: str, part: str) -> None:
    with pytest.raises(RefusedUrlError) as refused:
        check_url(url)
    assert part in str(refused.value)
    assert "pass" not in str(refused.value)


def test_plain_http_and_private_addresses_go_together() -> None:
    for url in ("http://127.0.0.1:8080/", "http://localhost/", "https://[fd00::1]/", "http://receiver:9000/a"):
        assert check_url(url, allow_private=True).url == url
        with pytest.raises(RefusedUrlError):
            check_url(url.replace("receiver", "localhost"))
    for url in ("http://169.254.169.254/", "http://[fe80::1]/", "http://2130706433/", "http://[::ffff:0:7f00:1]/"):
        with pytest.raises(RefusedUrlError):
            check_url(url, allow_private=True)


@given(st.text(st.sampled_from("0123456789xabf."), min_size=1, max_size=24))
@example("0x7f.0.0.1")
@example("127.0.0.1.")
def test_whatever_the_c_library_takes_for_an_address_is_judged_as_one(host: str) -> None:
    """A host that passes as a name must not be a number to the resolver."""
    try:
        socket.inet_aton(host.removesuffix("."))
    except OSError:
        return
    try:
        checked = check_url(f"https://{host}/")
    except RefusedUrlError:
        return
    assert refuse_reason(checked.host) is None
    assert socket.inet_aton(checked.host) == ipaddress.IPv4Address(checked.host).packed
