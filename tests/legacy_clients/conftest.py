"""The server of the gRPC tests, and every legacy SDK as a process."""

import contextlib
import subprocess

import pytest

from drivers import SDKS, Driver, e2e

spawn, serve, server = e2e.spawn, e2e.serve, e2e.server


@pytest.fixture(scope="session")
def clients():
    """A process of each SDK, for calls: they keep nothing from one test to the next."""
    with contextlib.ExitStack() as ends:
        started = {}
        for sdk in SDKS:
            started[sdk] = Driver(sdk)
            ends.callback(started[sdk].end)
        yield started


@pytest.fixture
def drive():
    """Starts a process of an SDK that does not outlive the test."""
    started = []

    def start(sdk):
        started.append(Driver(sdk))
        return started[-1]

    yield start
    for driver in started:
        driver.end()


@pytest.fixture
def cli(spawn):
    """Runs the command line as a gRPC caller; returns its stdout, or raises with its exit code and stderr."""
    def run(url, *arguments):
        done = subprocess.run(
            [e2e.tool("CREWCALL_TEST_BINARY"), *arguments, "--server", url],
            capture_output=True,
            text=True,
            timeout=e2e.PATIENCE,
        )
        if done.returncode:
            raise RuntimeError(f"exit {done.returncode}: {done.stderr}")
        return done.stdout.strip()

    return run
