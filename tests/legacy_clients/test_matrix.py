"""Every client calls every worker, across the protocols."""

import json

import pytest

from drivers import SDKS, Driver, Refused, e2e, groups, join, listed

PARAMS = {"a": 2, "b": 3}
# What must come through as it is. Whole numbers above 2^53 and 1.0 do not survive JavaScript.
VALUES = [None, True, "", "héllo 服务 <&>\u2028 \U0001f600", [1, [2, {}]], {"z": 1, "a": [], "": None}, -1.5, 10**15]


@pytest.fixture(scope="module")
def crew():
    """A server with a gRPC worker of the Rust SDK, one worker of each legacy SDK, and no worker key."""
    started = []
    dev = e2e.Process(e2e.tool("CREWCALL_TEST_BINARY"), "dev", "--listen", "127.0.0.1:0")
    try:
        url = "http://" + dev.expect(r"\b127\.0\.0\.1:[1-9]\d*").group()
        dev.expect("worker dev serves")
        for sdk in SDKS:
            started.append(Driver(sdk))
            join(started[-1], url)
        yield url
    finally:
        for driver in started:
            driver.end()
        dev.end()


# Methods of the gRPC worker have no prefix.
WORKERS = [*(f"{sdk}." for sdk in SDKS), ""]


@pytest.mark.parametrize("worker", WORKERS, ids=lambda prefix: prefix.rstrip(".") or "grpc")
@pytest.mark.parametrize("sdk", SDKS)
def test_a_call_gets_its_result_or_its_error(clients, crew, sdk, worker):
    client = clients[sdk]
    assert client.execute_sync(url=crew, method=f"{worker}add", params=PARAMS) == 5
    assert client.call(url=crew, method=f"{worker}add", params=PARAMS) == 5
    for value in VALUES:
        assert client.execute_sync(url=crew, method=f"{worker}echo", params=value) == value
    with pytest.raises(Refused, match="out of paper"):
        client.execute_sync(url=crew, method=f"{worker}fail", params={"message": "out of paper"})


@pytest.mark.parametrize("sdk", SDKS)
def test_grpc_callers_are_served_by_legacy_workers(cli, crew, sdk):
    assert cli(crew, "call", f"{sdk}.add", json.dumps(PARAMS)) == "5"
    for value in VALUES:
        assert json.loads(cli(crew, "call", f"{sdk}.echo", json.dumps(value))) == value
    with pytest.raises(RuntimeError, match="out of paper"):
        cli(crew, "call", f"{sdk}.fail", "null")


def test_a_program_serves_legacy_callers(clients, spawn, crew):
    """`crewcall worker`: a gRPC worker in whatever language."""
    worker = spawn(
        *(e2e.tool("CREWCALL_TEST_BINARY"), "worker", "--server", crew, "--method", "cat", "--group", "cat"),
        *("--concurrency", "4", "--", "cat"),
    )
    listed(crew, "cat")
    for client in clients.values():
        assert client.execute_sync(url=crew, method="cat", params=PARAMS) == PARAMS, client
    assert worker.stop() == 0


@pytest.mark.parametrize("sdk", SDKS)
def test_the_other_ways_to_call(clients, crew, sdk):
    client = clients[sdk]
    assert client.retry(url=crew, method=f"{sdk}.add", params=PARAMS) == 5
    task = client.execute(url=crew, method=f"{sdk}.slow10ms", params=PARAMS)
    assert (task["status"], task["result"]) == ("processing", None)
    done = client.get_result(url=crew, task=task["taskId"])
    assert (done["status"], done["result"]) == ("done", 5)
    # An outcome is fetched once.
    with pytest.raises(Refused, match="404"):
        client.get_result(url=crew, task=task["taskId"])
    assert client.execute_sync(url=crew, method=f"{sdk}.nothing", params={}) is None
    if sdk.startswith("py-"):
        assert client.call_async(url=crew, method=f"{sdk}.add", params=PARAMS) == 5
    # A base URL that ends in a slash: the original redirected it into an error for all but Python.
    assert client.execute_sync(url=f"{crew}/", method=f"{sdk}.add", params=PARAMS) == 5


@pytest.mark.parametrize("sdk", SDKS)
def test_without_a_worker_the_caller_hears_at_once(clients, crew, sdk):
    client = clients[sdk]
    for call in (client.execute_sync, client.call, client.retry):
        with pytest.raises(Refused, match="服务不可用"):
            call(url=crew, method="nobody.serves", params=PARAMS)
    task = client.execute(url=crew, method="nobody.serves", params=PARAMS)
    assert (task["status"], task["result"]) == ("error", "服务不可用")


@pytest.mark.parametrize("sdk", [sdk for sdk in SDKS if sdk.startswith("py-")])
def test_a_result_that_is_not_json_fails_its_task_and_not_its_worker(clients, crew, sdk):
    with pytest.raises(Refused, match="cannot be read: invalid character 'N'"):
        clients[sdk].execute_sync(url=crew, method=f"{sdk}.nan", params={})
    assert clients[sdk].execute_sync(url=crew, method=f"{sdk}.add", params=PARAMS) == 5


@pytest.mark.parametrize("sdk", SDKS)
def test_a_megabyte_there_and_back(clients, crew, sdk):
    text = "é<" * (1 << 18)
    assert clients[sdk].execute_sync(url=crew, method=f"{sdk}.echo", params=text) == text


def test_every_worker_is_on_the_status_page_once(crew):
    assert groups(crew) == sorted([*SDKS, "dev"])
