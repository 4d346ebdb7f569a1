"""The real binary, the sample worker and grpcurl as processes; what a test waits for is a line they print."""

import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import sys
import threading
import time

import grpc
import pytest

from crewcall.v1 import admin_pb2_grpc, tasks_pb2_grpc, worker_pb2_grpc

HERE = pathlib.Path(__file__).parent
# Only a fault takes so long; no test passes by waiting for it.
PATIENCE = 30


def tool(variable):
    path = os.environ.get(variable)
    if not path:
        pytest.exit(f"{variable} is not set: run these tests with ./test python", returncode=2)
    return path


class Process:
    """A child whose output is read as it comes."""

    def __init__(self, *command, env=None):
        self.child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.seen = []
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.child.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def expect(self, pattern):
        """The match of the first line, from here on, that matches."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = self.lines.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                raise AssertionError(f"no line like {pattern!r} from {self.child.args}; it said {self.seen}")
            self.seen.append(line)
            if match := re.search(pattern, line):
                return match

    def stop(self, sign=signal.SIGTERM):
        """Tells it to end, waits, and returns its exit code."""
        self.child.send_signal(sign)
        return self.child.wait(PATIENCE)

    def end(self):
        """Whatever its state: gone afterwards."""
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()


@pytest.fixture
def spawn():
    """Starts processes that do not outlive the test."""
    started = []

    def start(*command, env=None):
        started.append(Process(*command, env=env))
        return started[-1]

    yield start
    for process in reversed(started):
        process.end()


class Server:
    def __init__(self, process, address):
        self.process = process
        self.address = address
        self.channel = grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)])
        self.tasks = tasks_pb2_grpc.TasksStub(self.channel)
        self.admin = admin_pb2_grpc.AdminStub(self.channel)
        self.worker = worker_pb2_grpc.WorkerStub(self.channel)


@pytest.fixture
def serve(spawn):
    """Starts `crewcall serve` on a free port, with more flags if given."""
    servers = []

    def start(*flags, listen="127.0.0.1:0"):
        process = spawn(tool("CREWCALL_TEST_BINARY"), "serve", "--listen", listen, "--ephemeral", *flags)
        address = process.expect(r"\b127\.0\.0\.1:[1-9]\d*").group()
        servers.append(Server(process, address))
        grpc.channel_ready_future(servers[-1].channel).result(PATIENCE)
        return servers[-1]

    yield start
    for server in servers:
        server.channel.close()


@pytest.fixture
def server(serve):
    return serve()


@pytest.fixture
def work(spawn):
    """Starts the sample worker and returns once it has joined."""

    def start(server, worker_id="py-1", *flags):
        script = str(HERE / "worker.py")
        process = spawn(sys.executable, script, "--server", server.address, "--worker-id", worker_id, *flags)
        process.expect(f"joined as {worker_id}")
        return process

    return start


@pytest.fixture
def worker(server, work):
    return work(server)


@pytest.fixture
def grpcurl(server):
    """Runs grpcurl against the server; returns what it printed, or raises with what it complained of."""

    def run(*arguments, data=None):
        command = [tool("CREWCALL_TEST_GRPCURL"), "-plaintext"]
        if data is not None:
            command += ["-d", json.dumps(data)]
        command += [server.address, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout

    return run


def ended_with(call):
    """The gRPC error that `call` must end with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value
