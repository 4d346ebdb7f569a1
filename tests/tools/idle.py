#!/usr/bin/env python3
"""What an idle worker costs the server in memory: many of each kind, each on a connection of its own.

    tests/tools/idle.py target/release/crewcall [--count 5000] [--kind grpc|json|legacy]

The clients are bytes on sockets, so that this process can hold any number of them. They answer no ping, so all is
measured before the first is due. Resident memory of the server's process; the kernel's buffers are not in it.
"""

import argparse
import json
import re
import resource
import selectors
import socket
import subprocess
import time
import urllib.request

KINDS = ("grpc", "json", "legacy")
# A server that needs longer than this is broken.
PATIENCE = 60


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def field(name, value):
    """A header as HPACK literals, never indexed."""
    return b"\x10" + bytes([len(name)]) + name + bytes([len(value)]) + value


def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def message(number, data):
    """A field of protobuf that holds bytes."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def grpc(number):
    pool = varint(2 << 3) + varint(16)
    method = message(1, b"idle")
    hello = message(3, f"idle-{number}".encode()) + message(11, pool) + message(12, method)
    hello = varint(1 << 3) + varint(1) + hello
    credit = message(2, varint(2 << 3) + varint(16))
    request = message(1, hello) + credit
    head = b"".join(
        [
            *(field(b":method", b"POST"), field(b":scheme", b"http"), field(b":path", b"/crewcall.v1.Worker/Session")),
            *(field(b":authority", b"localhost"), field(b"content-type", b"application/grpc"), field(b"te", b"trailers")),
        ]
    )
    data = b"\0" + len(request).to_bytes(4, "big") + request
    # Windows as large as an SDK's.
    settings = (3).to_bytes(2, "big") + (100).to_bytes(4, "big") + (4).to_bytes(2, "big") + (1 << 20).to_bytes(4, "big")
    return b"".join(
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            frame(4, 0, 0, settings),
            frame(4, 1, 0),
            frame(8, 0, 0, (1 << 20).to_bytes(4, "big")),
            frame(1, 4, 1, head),
            frame(0, 0, 1, data),
        ]
    )


def upgrade(path):
    return (
        f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
        "sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).encode()


def text(value):
    """A text frame as a client sends it, under a mask of zeroes."""
    data = json.dumps(value).encode()
    length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
    return b"\x81" + length + b"\0\0\0\0" + data


def json_worker(number):
    hello = {"worker_id": f"idle-{number}", "pools": [{"concurrency": 16}], "methods": [{"name": "idle"}]}
    return upgrade("/v1/worker"), text({"hello": hello, "credits": [{"total": 16}]})


def legacy(number):
    registration = {"group": "idle", "methods": [{"name": "idle", "docs": [f"number {number}"]}]}
    return upgrade("/api/worker/connect/"), text(registration)


def connect(kind, address, number):
    stream = socket.create_connection(address)
    stream.settimeout(PATIENCE)
    if kind == "grpc":
        stream.sendall(grpc(number))
        return stream
    head, hello = (json_worker if kind == "json" else legacy)(number)
    stream.sendall(head)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += stream.recv(1)
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    stream.sendall(hello)
    return stream


def workers(address):
    """How many are live."""
    with urllib.request.urlopen("http://{}:{}/v1/methods".format(*address), timeout=PATIENCE) as answer:
        return sum(method["workers"] for method in json.load(answer)["methods"])


def joined(address, count):
    deadline = time.monotonic() + PATIENCE
    while workers(address) != count:
        assert time.monotonic() < deadline, f"{workers(address)} of {count} workers joined"
        time.sleep(0.05)


def memory(pid):
    """Resident, in bytes."""
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return 1024 * int(re.search(r"^Rss:\s+(\d+)", rollup.read(), re.MULTILINE).group(1))


def drained(streams):
    """Reads what has come, so that nothing waits in the server for its client."""
    with selectors.DefaultSelector() as ready:
        for stream in streams:
            ready.register(stream, selectors.EVENT_READ)
        while found := ready.select(0.2):
            for key, _ in found:
                assert key.fileobj.recv(1 << 16), "the server closed a connection"


def measure(binary, kind, count):
    limits = "lease_ms = 600000, beat_ms = 200000"
    server = subprocess.Popen(
        [binary, "serve", "--ephemeral", "--listen", "127.0.0.1:0", "--log", "error", "--limits", limits],
        stdout=subprocess.PIPE,
        text=True,
    )
    streams = []
    try:
        address = re.search(r"http://([\d.]+):(\d+)", server.stdout.readline())
        address = address[1], int(address[2])
        # The first ones pay for what all share.
        streams.extend(connect(kind, address, number) for number in range(50))
        joined(address, 50)
        drained(streams)
        before = memory(server.pid)
        streams.extend(connect(kind, address, number) for number in range(50, 50 + count))
        joined(address, 50 + count)
        drained(streams)
        return (memory(server.pid) - before) / count
    finally:
        for stream in streams:
            stream.close()
        server.terminate()
        server.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this one; may be repeated")
    parser.add_argument("--count", type=int, default=5000)
    arguments = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for kind in arguments.kind or KINDS:
        each = measure(arguments.binary, kind, arguments.count)
        print(f"{kind}: {each / 1024:.1f} KiB for each of {arguments.count} idle workers", flush=True)


if __name__ == "__main__":
    main()
