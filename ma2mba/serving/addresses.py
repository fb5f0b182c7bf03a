"""Which addresses the server may connect to for a client: public ones alone."""

import asyncio
import ipaddress
import socket

UNICAST = ipaddress.ip_network("2000::/3")
"""All public IPv6 addresses. Outside: IPv4-mapped, NAT64, private, link-local, multicast, loopback, unspecified."""
SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        (
            "2002::/16",  # 6to4: leads to an IPv4 address
            "2001::/23",  # Teredo, and other protocols
            "192.88.99.0/24",  # relays of 6to4
            "3fff::/20",  # documentation; Python 3.11 takes it for public, and some of the next network too
            "192.0.0.0/24",
            "168.63.129.16/32",  # the host of a virtual machine of Azure
        ),
    )
)


def address_problem(address: str) -> str:
    """Return why the server must not connect to an address; "" if the address is public."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "is no address"
    if parsed.version == 6 and (parsed.scope_id or parsed not in UNICAST):
        return "is not public"
    if any(parsed in network for network in SPECIAL if network.version == parsed.version):
        return "has a special meaning"
    public = parsed.is_global and not parsed.is_multicast and not parsed.is_reserved
    return "" if public else "is not public"


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host. Raise OSError if it has none."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # an empty or a long label
        raise OSError(str(error)) from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
