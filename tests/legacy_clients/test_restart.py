"""The server goes away and comes back on the same port; a worker goes away and does not."""

import signal

import pytest

from drivers import SDKS, Refused, join, listed, status, until, worker_url

# The worker of the Rust SDK ends with its connection; its users start it again.
RECONNECTING = [sdk for sdk in SDKS if sdk != "rust"]
PARAMS = {"a": 2, "b": 3}


@pytest.fixture(params=[signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def restart(request, serve):
    """Starts a server; called again, ends it this way and starts it on the same port."""
    servers = []

    def run():
        if servers:
            servers[-1].channel.close()
            servers[-1].process.stop(request.param)
        servers.append(serve(listen=servers[0].address if servers else "127.0.0.1:0"))
        return f"http://{servers[-1].address}"

    return run


def test_workers_come_back_and_clients_go_on(drive, restart):
    url = restart()
    drivers = {sdk: drive(sdk) for sdk in SDKS}
    for driver in drivers.values():
        join(driver, url)
    for sdk, driver in drivers.items():
        assert driver.execute_sync(url=url, method=f"{sdk}.add", params=PARAMS) == 5

    assert restart() == url
    ended = drivers["rust"].event("ended")
    assert (ended["name"], ended["text"]) == ("rust", None), "the worker of the Rust SDK ends in order"
    drivers["rust"].work(url=worker_url("rust", url), name="rust")
    listed(url, *SDKS)
    for caller in drivers.values():
        for sdk in SDKS:
            assert caller.execute_sync(url=url, method=f"{sdk}.add", params=PARAMS) == 5, (caller, sdk)


def test_a_rust_worker_started_before_the_server_joins(drive, serve):
    """The one reconnect that this SDK has: it tries again, every 5 s, until its first connection."""
    server = serve()
    server.channel.close()
    server.process.stop(signal.SIGKILL)
    url = f"http://{server.address}"
    rust = drive("rust")
    rust.work(url=worker_url("rust", url), name="rust")
    rust.event("log", "Retrying connection in 5 seconds")
    serve(listen=server.address)
    listed(url, "rust")
    assert rust.call(url=url, method="rust.add", params=PARAMS) == 5


@pytest.mark.parametrize("sdk", SDKS)
def test_a_retry_client_outlasts_a_restart(drive, serve, sdk):
    server = serve()
    address, url = server.address, f"http://{server.address}"
    driver = drive(sdk)
    server.channel.close()
    server.process.stop(signal.SIGKILL)
    calling = driver.begin("retry", url=url, method=f"{sdk}.add", params=PARAMS, retries=600, delay=0.05)
    serve(listen=address)
    join(driver, url)
    try:
        assert calling() == 5
    except Refused as error:
        # The Rust SDK repeats only what did not reach a server, so it may hear that the worker is not there yet.
        assert sdk == "rust" and "服务不可用" in str(error), error
    assert driver.retry(url=url, method=f"{sdk}.add", params=PARAMS) == 5


def test_callers_of_a_lost_worker_are_told(clients, drive, server):
    url = f"http://{server.address}"
    worker = drive("py-1.6.0")
    name = join(worker, url)
    calls = {sdk: client.begin("execute_sync", url=url, method=f"{name}.hang", params={}) for sdk, client in clients.items()}
    until(lambda: status(url)["activeTasks"] == len(calls), "all calls at the worker")
    # The one SDK with a timeout that works. What it leaves behind is as lost as the others'.
    with pytest.raises(Refused, match="timed out"):
        clients["rust"].execute_sync(url=url, method=f"{name}.hang", params={}, timeout=0.1)
    worker.end()
    for sdk, call in calls.items():
        with pytest.raises(Refused, match="Worker disconnected"):
            call()
            pytest.fail(sdk)
