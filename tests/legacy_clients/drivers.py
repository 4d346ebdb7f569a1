"""The legacy SDKs as processes that take lines of JSON; see README.md."""

import importlib.util
import itertools
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time
import urllib.request

HERE = pathlib.Path(__file__).parent
# Only a fault takes so long; no test passes by waiting for it.
PATIENCE = 60

PYTHONS = ("1.2.0", "1.4.4", "1.5.0", "1.5.6", "1.6.0", "2.0.1")
SDKS = (*(f"py-{version}" for version in PYTHONS), "node", "go", "rust")

# Processes, tools and the server are those of the gRPC tests. Their conftest has the name of ours.
_spec = importlib.util.spec_from_file_location("e2e_conftest", HERE.parent / "e2e" / "python" / "conftest.py")
e2e = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(e2e)


class Refused(Exception):
    """The operation failed; the text is the SDK's own."""


def command(sdk):
    """How the driver of an SDK is started, and with which environment."""
    installed = pathlib.Path(e2e.tool("CREWCALL_LEGACY"))
    if sdk == "go":
        return [installed / "go" / "driver"], {}
    if sdk == "rust":
        return [installed / "rust" / "debug" / "crewcall-legacy-rust"], {}
    if sdk == "node":
        return ["node", HERE / "node" / "driver.js"], {"NODE_PATH": str(installed / "node" / "node_modules")}
    folders = [installed / "python" / sdk.removeprefix("py-"), installed / "python" / "common"]
    return [sys.executable, HERE / "python" / "driver.py"], {"PYTHONPATH": os.pathsep.join(map(str, folders))}


class Driver:
    """One process of an SDK. Operations are methods; each returns what the SDK answered or raises Refused."""

    def __init__(self, sdk):
        self.sdk = sdk
        self.log = []
        self.events = queue.Queue()
        self.waiting = {}
        self.numbers = itertools.count()
        arguments, env = command(sdk)
        self.child = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **env},
        )
        self.writing = threading.Lock()
        threading.Thread(target=self._hear, daemon=True).start()
        threading.Thread(target=self._drain, daemon=True).start()
        self.event("up")

    def __repr__(self):
        return f"<{self.sdk}>"

    def _drain(self):
        for line in self.child.stderr:
            self.log.append(line.rstrip("\n"))

    def _hear(self):
        for line in self.child.stdout:
            answer = json.loads(line)
            if "id" in answer:
                self.waiting.pop(answer["id"]).put(answer)
            else:
                self.events.put(answer)
        for answers in list(self.waiting.values()):
            answers.put({"error": f"{self} ended"})
        self.events.put(None)

    def begin(self, op, **arguments):
        """Starts an operation; what it returns, called, waits for the answer."""
        number = next(self.numbers)
        answers = self.waiting[number] = queue.Queue()
        with self.writing:
            self.child.stdin.write(json.dumps({"id": number, "op": op, **arguments}) + "\n")
            self.child.stdin.flush()

        def end():
            try:
                answer = answers.get(timeout=PATIENCE)
            except queue.Empty:
                raise AssertionError(f"{self} does not answer {op} {arguments}; its log: {self.log[-20:]}") from None
            if "error" in answer:
                raise Refused(answer["error"])
            return answer["ok"]

        return end

    def __getattr__(self, op):
        return lambda **arguments: self.begin(op, **arguments)()

    def event(self, kind, text=""):
        """Waits for an event whose text has this in it."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                event = self.events.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                event = None
            if event is None:
                raise AssertionError(f"{self}: no event {kind} {text}; its log: {self.log[-20:]}")
            if event["event"] == kind and text in (event.get("text") or ""):
                return event

    def end(self):
        self.child.kill()
        self.child.wait()


def status(url):
    with urllib.request.urlopen(f"{url}/api/status", timeout=PATIENCE) as answer:
        return json.load(answer)


def groups(url):
    """The groups of the live workers, each as often as it has workers."""
    return sorted(worker["group"] for worker in status(url)["workers"])


def until(condition, what):
    """Asks again and again: the server tells nobody when a legacy worker has come or gone."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it never came to this: {what}"
        time.sleep(0.01)
    return found


def listed(url, *names):
    """Waits until each of these workers is registered."""
    until(lambda: set(names) <= set(groups(url)), f"workers {names} listed")


def worker_url(sdk, url, key=None):
    """What a user of the SDK gives to a worker: Python takes http, the others take ws and no less than the path."""
    if sdk.startswith("py-"):
        return f"{url}/{key}" if key else url
    return url.replace("http://", "ws://") + "/api/worker/connect" + (f"/{key}" if key else "/")


def join(driver, url, name=None, key=None, **more):
    """A worker named after its SDK, registered."""
    name = name or driver.sdk
    driver.work(url=worker_url(driver.sdk, url, key), name=name, **more)
    listed(url, name)
    return name
