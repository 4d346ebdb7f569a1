"""The published Python SDK, whichever generation stands on the path, behind lines of JSON.

Reads `{"id", "op", ...}` from stdin, one a line, and answers `{"id", "ok"}` or `{"id", "error"}` in any order.
tests/legacy_clients/README.md lists the operations; the drivers of the other languages take the same.
"""

import importlib
import importlib.util
import json
import logging
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor


def package(*names):
    """The SDK's package; the first generation gave it another name."""
    for name in names:
        if importlib.util.find_spec(name):
            return importlib.import_module(name)
    raise ImportError(f"none of {names} is on the path")


scheduler = package("schedulersdk", "scheduler")
worker = package("workersdk", "worker")

# The SDK prints to stdout, which belongs to the driver's answers.
answers = os.fdopen(os.dup(1), "w", buffering=1)
sys.stdout = sys.stderr
answering = threading.Lock()
# Client and worker of one process share nothing in the SDK but these.
workers = {}


def say(message):
    with answering:
        answers.write(json.dumps(message) + "\n")


def fail(params):
    raise ValueError("out of paper")


def slow10ms(params):
    time.sleep(0.01)
    return params["a"] + params["b"]


def odd(n):
    if n % 10 == 0:
        raise ValueError(f"no {n}")
    return 2 * n + 1


def hang(params):
    threading.Event().wait()


HANDLERS = {
    "add": lambda params: params["a"] + params["b"],
    "echo": lambda params: params,
    "nothing": lambda params: None,
    "fail": fail,
    "slow10ms": slow10ms,
    "hang": hang,
    "nan": lambda params: float("nan"),
    "odd": odd,
}


def work(url, name, prefix=None):
    config = worker.Config(scheduler_url=url, worker_group=name, max_retry=1, ping_interval=30)
    one = worker.Worker(config)
    for method, handler in HANDLERS.items():
        one.register_method(f"{prefix or name}.{method}", handler, f"{method}, in Python")
    one.start()
    workers[name] = one
    return True


def stop(name):
    workers.pop(name).stop()
    return True


def shown(response):
    return {"taskId": response.task_id, "status": response.status, "result": response.result}


def execute(url, method, params):
    return shown(scheduler.SchedulerClient(url).execute(method, params))


def get_result(url, task):
    return shown(scheduler.SchedulerClient(url).get_result(task))


def execute_sync(url, method, params, timeout=30):
    return scheduler.SchedulerClient(url).execute_sync(method, params, timeout).result


def call(url, method, params):
    return worker.call(url, method, params)


def call_async(url, method, params):
    return worker.get_result(url, worker.call_async(url, method, params))


def retry(url, method, params, retries=3, delay=0.1):
    client = scheduler.RetryClient(url, max_retries=retries, retry_delay=delay)
    return client.execute_sync_with_retry(method, params, 30).result


def encrypted(url, method, params, key, salt):
    client = scheduler.SchedulerClient(url)
    if hasattr(client, "execute_sync_encrypted"):
        return client.execute_sync_encrypted(method, key, salt, params, 30).result
    # 1.5.0 has no way of its own to fetch what it executed but the plain one.
    return client.get_result(client.execute_encrypted(method, key, salt, params).task_id).result


def retry_encrypted(url, method, params, key, salt, retries=3, delay=0.1):
    client = scheduler.RetryClient(url, max_retries=retries, retry_delay=delay)
    return client.execute_sync_encrypted_with_retry(method, key, salt, params, 30).result


def call_encrypted(url, method, params, key, salt):
    # Not exported by the package, so imported as its users have to.
    helper = importlib.import_module(f"{worker.__name__}.call")
    return helper.call_encrypted(url, method, key, salt, params)


def bench(url, method, params, count):
    client = scheduler.SchedulerClient(url)
    times = []
    for _ in range(count):
        began = time.perf_counter()
        client.execute_sync(method, params)
        times.append((time.perf_counter() - began) * 1000)
    return times


def many(url, method, start, count, concurrency):
    local = threading.local()

    def one(n):
        if not hasattr(local, "client"):
            local.client = scheduler.SchedulerClient(url)
        try:
            return [n, {"ok": local.client.execute_sync(method, n).result}]
        except Exception as error:
            return [n, {"error": str(error)}]

    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(one, range(start, start + count)))


OPERATIONS = {
    function.__name__: function
    for function in (
        work,
        stop,
        execute,
        get_result,
        execute_sync,
        call,
        call_async,
        retry,
        encrypted,
        retry_encrypted,
        call_encrypted,
        bench,
        many,
    )
}


def serve(line):
    request = json.loads(line)
    number, operation = request.pop("id"), request.pop("op")
    try:
        say({"id": number, "ok": OPERATIONS[operation](**request)})
    except Exception as error:
        say({"id": number, "error": f"{error}"})


logging.basicConfig(level=logging.INFO, stream=sys.stderr)
say({"event": "up"})
for line in sys.stdin:
    threading.Thread(target=serve, args=(line,), daemon=True).start()
os._exit(0)
