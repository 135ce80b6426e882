#!/usr/bin/env python3
"""Has a challenge approved, with nothing but Python's own library.

At the native door, with the files of `opcert client add`:

    approve.py DIRECTORY ADDRESS < challenge.jws > approval.jws
    approve.py ./erp localhost:7443 < challenge.jws > approval.jws

On the control socket, where the caller is the local user and needs no certificate:

    approve.py --socket /run/opcert/control.sock < challenge.jws > approval.jws
"""

import http.client
import json
import socket
import ssl
import sys
from pathlib import Path

# A person may be asked, so the answer may take minutes.
TIMEOUT = 150


class Refused(Exception):
    """The daemon says no (RFC 9457): `code` is for programs, `detail` and `action` for people."""

    def __init__(self, problem):
        super().__init__(f"{problem['detail']}. {problem['action']} [{problem['code']}]")
        self.code = problem["code"]
        self.retry_after = problem.get("retry_after")


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=TIMEOUT)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def native_door(directory, address):
    """TLS 1.3, both sides with certificates of the daemon's local authority."""
    context = ssl.create_default_context(cafile=directory / "server-ca.pem")
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(directory / "client.pem", directory / "client-key.pem")
    return http.client.HTTPSConnection(address, timeout=TIMEOUT, context=context)


def approve(connection, challenge):
    """The approval of a challenge, as compact JWS. The same challenge again gives the same one."""
    body = json.dumps({"challenge": challenge})
    connection.request("POST", "/v1/approvals", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    document = json.load(answer)
    if answer.status != 200:
        raise Refused(document)
    return document["approval"]


def main(first, second):
    if first == "--socket":
        connection = UnixConnection(second)
    else:
        connection = native_door(Path(first), second)
    try:
        print(approve(connection, sys.stdin.read().strip()))
    except Refused as refused:
        sys.exit(str(refused))


if __name__ == "__main__":
    main(*sys.argv[1:])
