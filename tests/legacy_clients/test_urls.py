"""With which URL a worker of each SDK gets in, with a worker key and without. `H` stands for host and port."""

import pytest

from drivers import SDKS, Driver, Refused, join, listed

KEY = "123456"
CONNECT = "/api/worker/connect"
# The SDKs other than Python's take a URL as it is; Python's puts the path behind it, unless it is there.
PYTHON_OPEN = ["http://H", "http://H/", "ws://H", f"ws://H{CONNECT}", f"http://H{CONNECT}/", f"http://H{CONNECT}/{KEY}"]
OTHER_OPEN = ["ws://H", "ws://H/", "ws://H/ws", f"ws://H{CONNECT}", f"ws://H{CONNECT}/", f"ws://H{CONNECT}/{KEY}"]
PYTHON_KEYED = [
    f"http://H/{KEY}",
    f"http://H{CONNECT}/{KEY}",
    f"http://H{CONNECT}/{KEY}/",
    f"ws://H{CONNECT}/{KEY}?{CONNECT}",
]
OTHER_KEYED = [f"ws://H{CONNECT}/{KEY}", f"ws://H{CONNECT}/{KEY}/", f"ws://H{CONNECT}/{KEY}?{CONNECT}"]
PYTHON_SHUT = ["http://H", "http://H/1234567", f"http://H{CONNECT}/wrong"]
OTHER_SHUT = ["ws://H", "ws://H/ws", f"ws://H{CONNECT}", f"ws://H{CONNECT}/", f"ws://H{CONNECT}/wrong"]


@pytest.fixture(scope="module", params=SDKS)
def worker(request):
    """A process of each SDK in turn, in which many workers start."""
    driver = Driver(request.param)
    yield driver
    driver.end()


def forms(worker, python, other):
    return python if worker.sdk.startswith("py-") else other


def get_in(worker, url, forms):
    for number, form in enumerate(forms):
        name = f"{worker.sdk}-{number}"
        try:
            worker.work(url=form.replace("H", url.removeprefix("http://"), 1), name=name)
        except Refused as error:
            raise AssertionError(f"{form} is refused: {error}") from error
        listed(url, name)
        assert worker.execute_sync(url=url, method=f"{name}.add", params={"a": 2, "b": 3}) == 5, form
        worker.stop(name=name)


def test_without_a_key_every_form_connects(serve, worker):
    get_in(worker, f"http://{serve().address}", forms(worker, PYTHON_OPEN, OTHER_OPEN))


def test_with_a_key_the_forms_that_carry_it_connect(serve, worker):
    server = serve("--worker-key", KEY)
    get_in(worker, f"http://{server.address}", forms(worker, PYTHON_KEYED, OTHER_KEYED))


def test_with_a_key_no_other_form_connects(serve, worker):
    server = serve("--worker-key", KEY)
    url = f"http://{server.address}"
    for number, form in enumerate(forms(worker, PYTHON_SHUT, OTHER_SHUT)):
        name, whole = f"out-{number}", form.replace("H", server.address, 1)
        if worker.sdk == "rust":
            # It goes on trying, and says so in its log alone.
            worker.work(url=whole, name=name)
            assert "HTTP error: 404" in worker.event("log", "Worker connection failed")["text"]
            worker.stop(name=name)
        else:
            with pytest.raises(Refused):
                worker.work(url=whole, name=name)
    # Callers need no key, and the key still lets a worker in.
    name = join(worker, url, key=KEY)
    assert worker.call(url=url, method=f"{name}.add", params={"a": 2, "b": 3}) == 5
    worker.stop(name=name)
