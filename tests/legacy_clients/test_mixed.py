"""Ten thousand tasks from callers of every protocol, run by workers of every protocol."""

import collections
import contextlib
import json
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import client as grpc_client
import websocket

from drivers import HERE, PATIENCE, join

METHOD = "mix.odd"
# Who hands in how many, at most this many at once.
LEGACY = {"py-1.6.0": 1000, "py-2.0.1": 1000, "node": 1500, "go": 1500, "rust": 1000}
REST_CALLS, REST_TASKS, GRPC_CALLS = 1000, 1000, 2000
AT_ONCE = 8
# Beside a JSON and a gRPC worker.
WORKERS = ("py-1.5.0", "py-2.0.1", "node", "go", "rust")


def wanted(n):
    return {"error": f"no {n}"} if n % 10 == 0 else {"ok": 2 * n + 1}


class JsonWorker:
    """A worker on /v1/worker, as docs/worker-websocket.md shows one."""

    def __init__(self, address):
        self.socket = websocket.create_connection(f"ws://{address}/v1/worker", enable_multithread=True)
        self.ready = AT_ONCE
        hello = {"worker_id": "json", "pools": [{"concurrency": self.ready}], "methods": [{"name": METHOD}]}
        self.say(hello=hello, credits=[{"total": self.ready}])
        assert json.loads(self.socket.recv())["welcome"]["worker_id"] == "json"
        threading.Thread(target=self.run, daemon=True).start()

    def say(self, **frame):
        self.socket.send(json.dumps(frame))

    def run(self):
        # The server goes first when the test ends.
        with contextlib.suppress(websocket.WebSocketConnectionClosedException):
            self.serve()

    def serve(self):
        while text := self.socket.recv():
            for task in json.loads(text).get("assign", []):
                self.end(task)

    def end(self, task):
        answer = wanted(task["payload"])
        if "ok" in answer:
            end = {"succeeded": answer["ok"]}
        else:
            end = {"failed": {"error": {"code": "odd", "message": answer["error"]}, "retryable": False}}
        self.ready += 1
        self.say(results=[{"lease": task["lease"], **end}], credits=[{"total": self.ready}])


def get(url):
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return json.load(answer)


def post(url, value):
    request = urllib.request.Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


def rest_call(url, n):
    try:
        return n, {"ok": post(f"{url}/v1/call/{METHOD}", n)}
    except urllib.error.HTTPError as error:
        return n, {"error": json.load(error)["outcome"]["failed"]["message"]}


def rest_calls(url, numbers):
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda n: rest_call(url, n), numbers))


def rest_tasks(url, numbers):
    # A submitted task is tried again unless it says otherwise; its failure is what is asked for here.
    options = {"retry": {"max_attempts": 1}}
    tasks = [{"method": METHOD, "payload": n, "options": options} for n in numbers]
    ids = [result["task_id"] for result in post(f"{url}/v1/tasks", tasks)["results"]]
    assert len(set(ids)) == len(numbers)

    def outcome(n, task):
        seen = get(f"{url}/v1/tasks/{task}?wait=60s")
        assert seen["state"] in ("finished", "dead"), seen
        outcome = seen["outcome"]
        return n, {"ok": outcome["succeeded"]} if "succeeded" in outcome else {"error": outcome["failed"]["message"]}

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(outcome, numbers, ids))


def grpc_calls(server, numbers):
    tasks = [grpc_client.new_task(METHOD, n) for n in numbers]
    answers = []
    for position, answer in grpc_client.pipe(server.tasks, tasks, in_flight=200):
        kind = answer.WhichOneof("kind")
        assert kind == "outcome", (numbers[position], answer)
        outcome = answer.outcome
        if outcome.WhichOneof("kind") == "succeeded":
            answers.append((numbers[position], {"ok": json.loads(outcome.succeeded.data)}))
        else:
            answers.append((numbers[position], {"error": outcome.failed.message}))
    return answers


def test_every_task_ends_in_exactly_one_outcome(clients, drive, serve, spawn):
    server = serve()
    url = f"http://{server.address}"
    for sdk in WORKERS:
        join(drive(sdk), url, prefix="mix")
    JsonWorker(server.address)
    script = str(HERE / "grpc_worker.py")
    spawn(sys.executable, script, "--server", server.address, "--worker-id", "grpc").expect("joined as grpc")

    first = 0
    with ThreadPoolExecutor(16) as pool:
        running = []
        for sdk, count in LEGACY.items():
            many = {"url": url, "method": METHOD, "start": first, "count": count, "concurrency": AT_ONCE}
            running.append(pool.submit(clients[sdk].many, **many))
            first += count
        for run, where, count in (
            (rest_calls, url, REST_CALLS),
            (rest_tasks, url, REST_TASKS),
            (grpc_calls, server, GRPC_CALLS),
        ):
            running.append(pool.submit(run, where, range(first, first + count)))
            first += count
        answers = [answer for one in running for answer in one.result()]

    assert first == 10_000
    times = collections.Counter(n for n, _ in answers)
    assert set(times) == set(range(first)) and set(times.values()) == {1}, "one answer for each task"
    wrong = [(n, answer) for n, answer in answers if not right(wanted(n), answer)]
    assert not wrong, f"{len(wrong)} wrong answers: {wrong[:5]}"

    stats = get(f"{url}/v1/stats")
    failed = sum("error" in wanted(n) for n in range(first))
    totals = {name: stats[f"{name}_total"] for name in ("submitted", "finished", "failed", "retried", "refused")}
    assert totals == {"submitted": first, "finished": first - failed, "failed": failed, "retried": 0, "refused": 0}
    assert (stats["cancelled_total"], stats["expired_total"]) == (0, 0)
    assert not any(stats[state] for state in ("delayed", "ready", "leased")), "nothing is left over"
    workers = get(f"{url}/v1/workers")["workers"]
    did = {worker["group"] or worker["id"]: worker["finished"] for worker in workers}
    assert did.keys() == {*WORKERS, "json", "grpc"}
    assert all(did.values()), f"each worker did its part: {did}"
    assert sum(did.values()) == first


def right(wanted, answer):
    """SDKs put words of their own, and quotes, around the text of an error."""
    if "error" in wanted:
        return "error" in answer and answer["error"].rstrip('"').endswith(wanted["error"])
    return answer == wanted
