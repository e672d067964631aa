"""What a link may lead to: web servers of the open network, by http and https.

A table of links is anyone's. Written as sitecustomize.py into a folder of PYTHONPATH, this is
imported by img2dataset and all its processes, before them. Standard library alone: it runs in
img2dataset's own environment.
"""

import http.client
import ipaddress
import os
import urllib.request
from typing import Any

ALLOW = "PRETRAIN_PRIVATE_ADDRESSES"  # set: servers of this machine and of its network, too
_HANDLERS = (
    urllib.request.ProxyHandler,
    urllib.request.UnknownHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
)


def install() -> None:
    """Refuse every other scheme (file:, data:, ftp:), and servers on private addresses."""
    opener = urllib.request.OpenerDirector()
    for handler in _HANDLERS:
        opener.add_handler(handler())
    urllib.request.install_opener(opener)
    if ALLOW not in os.environ and not urllib.request.getproxies():  # a proxy decides by itself
        connect = http.client.HTTPConnection.connect

        def connect_checked(connection: Any) -> None:
            connect(connection)
            address = connection.sock.getpeername()[0].partition("%")[0]
            if not ipaddress.ip_address(address).is_global:
                connection.close()
                raise OSError("a link to a private address")

        http.client.HTTPConnection.connect = connect_checked  # type: ignore[assignment, method-assign]


if __name__ == "sitecustomize":
    install()
