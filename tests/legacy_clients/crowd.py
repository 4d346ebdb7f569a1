#!/usr/bin/env python3
"""Many legacy workers on one server: what each costs in memory, and what one that stops reading does to the rest.

    ./test legacy-figures
"""

import argparse
import concurrent.futures
import json
import pathlib
import urllib.request

from drivers import PATIENCE, Driver, e2e, groups, status, until

# Sent to the worker that does not read: more than all buffers on the way hold, so that the server must wait.
PAYLOAD = "x" * (1 << 20)
UNREAD = 64


def post(url, method, params):
    body = json.dumps({"method": method, "params": params}).encode()
    with urllib.request.urlopen(f"{url}/api/execute", body, timeout=PATIENCE) as answer:
        return json.load(answer)


def fetch(url, task):
    with urllib.request.urlopen(f"{url}/api/result/{task}", timeout=PATIENCE) as answer:
        return json.load(answer)


def call(url, number):
    """Calls one worker; true if it is that one that answered."""
    return fetch(url, post(url, f"crowd.{number}", None)["taskId"])["result"] == number


def memory(pid):
    """What the process holds now, in bytes."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no VmRSS of {pid}")


def run(server, url, count):
    """Bytes of memory for each of `count` workers. Asserts that all but the stuck one answer, each for itself."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        crowd = Driver("node")
        try:
            # The server's first connections are not the crowd's cost.
            crowd.crowd(url=url.replace("http", "ws") + "/api/worker/connect/", name="warm", count=1)
            fetch(url, post(url, "warm.0", None)["taskId"])
            before = memory(server.child.pid)
            crowd.crowd(url=url.replace("http", "ws") + "/api/worker/connect/", name="crowd", count=count)
            until(lambda: groups(url).count("crowd") == count, f"{count} workers listed")
            each = (memory(server.child.pid) - before) / count
            assert all(pool.map(lambda number: call(url, number), range(count))), "before one is stuck"

            # Number 0 of the crowd comes after the one that warmed up.
            crowd.stop_reading(number=1)
            stuck = [post(url, "crowd.0", PAYLOAD)["taskId"] for _ in range(UNREAD)]
            assert all(pool.map(lambda number: call(url, number), range(1, count))), "while one is stuck"
            # It is still there, and has done nothing: it was stuck all the while.
            assert groups(url).count("crowd") == count
            counts = {worker["methods"][0]["name"]: worker["count"] for worker in status(url)["workers"]}
            assert counts["crowd.0"] == len(stuck)
            assert not any(number for name, number in counts.items() if name != "crowd.0")
            return each
        finally:
            crowd.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    count = parser.parse_args().count
    binary = e2e.tool("CREWCALL_TEST_BINARY")
    server = e2e.Process(binary, "serve", "--listen", "127.0.0.1:0", "--ephemeral")
    try:
        url = "http://" + server.expect(r"\b127\.0\.0\.1:[1-9]\d*").group()
        server.expect("^store: ")
        each = run(server, url, count)
        print(f"{count} legacy workers: {each / 1024:.1f} KiB of server memory each")
        print(f"one stopped reading {UNREAD} MiB: {count - 1} of {count - 1} others answered meanwhile")
    finally:
        server.end()


if __name__ == "__main__":
    main()
