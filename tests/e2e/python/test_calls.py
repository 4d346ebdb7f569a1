"""Calls from stock Python to workers in stock Python, through the real server."""

import json
import subprocess
import sys

import client
import grpc
import pytest
from conftest import HERE, PATIENCE
from crewcall.v1 import admin_pb2, task_pb2, tasks_pb2


def test_a_call_is_answered(server, worker):
    assert client.call(server.tasks, "add", {"a": 1, "b": 2}) == 3


def test_a_payload_passes_through_byte_for_byte(server, worker):
    for payload in [
        # Spaces, key order, and numbers that no double holds.
        task_pb2.Payload(data=b'{ "b":9007199254740993,"a":1e400 }', content_type="application/json"),
        task_pb2.Payload(data=bytes(range(256)), content_type="image/x-odd"),
    ]:
        request = tasks_pb2.CallRequest(task=tasks_pb2.NewTask(method="py.echo", payload=payload))
        assert server.tasks.Call(request, timeout=PATIENCE).outcome.succeeded == payload


def test_the_largest_payload_passes_and_one_byte_more_is_refused(server, worker):
    largest = task_pb2.Payload(data=b"x" * (4 << 20), content_type="text/plain")
    request = tasks_pb2.CallRequest(task=tasks_pb2.NewTask(method="py.echo", payload=largest))
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server.address, options) as channel:
        tasks = type(server.tasks)(channel)
        assert tasks.Call(request, timeout=PATIENCE).outcome.succeeded.data == largest.data
        request.task.payload.data += b"x"
        with pytest.raises(grpc.RpcError) as refused:
            tasks.Call(request, timeout=PATIENCE)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert client.reason(refused.value) == "payload_too_large"


def test_a_failure_is_an_answer_in_the_handlers_words(server, worker):
    with pytest.raises(client.NotSucceeded) as failed:
        client.call(server.tasks, "py.fail", {"code": "no_luck", "message": "not today", "retryable": False})
    assert failed.value.outcome.failed.code == "no_luck"
    assert failed.value.outcome.failed.message == "not today"

    with pytest.raises(client.NotSucceeded) as failed:
        client.call(server.tasks, "add", {"a": "one"})
    assert failed.value.outcome.failed.code == "bad_input"


def test_a_failed_attempt_is_tried_again_as_often_as_the_policy_says(server, worker):
    retry = task_pb2.RetryPolicy(max_attempts=3, initial_backoff_ms=1, max_backoff_ms=1)
    task_id = client.submit(server.tasks, "py.fail", {"code": "again"}, retry=retry)
    with pytest.raises(client.NotSucceeded, match="again"):
        client.wait(server.tasks, task_id)
    task = server.tasks.Get(tasks_pb2.GetRequest(task_id=task_id), timeout=PATIENCE).task
    assert task.state == task_pb2.TASK_STATE_DEAD
    assert task.attempt == 3


def test_a_task_waits_for_its_worker(server, work):
    task_id = client.submit(server.tasks, "add", {"a": 20, "b": 22})
    task = server.tasks.Get(tasks_pb2.GetRequest(task_id=task_id), timeout=PATIENCE).task
    assert task.state == task_pb2.TASK_STATE_READY
    work(server)
    assert client.wait(server.tasks, task_id) == 42


def test_a_watcher_sees_progress_and_the_end(server, worker):
    task_id = client.submit(server.tasks, "py.slow", {"steps": 5, "step_ms": 1})
    events = list(client.watch(server.tasks, task_id))
    steps = [event.progress.progress.current for event in events if event.HasField("progress")]
    assert steps == sorted(steps)
    assert all(event.cursor for event in events)
    states = [event.task.state for event in events if event.HasField("task")]
    assert states[-1] == task_pb2.TASK_STATE_FINISHED


def test_a_pipe_answers_every_call_once(server, worker):
    wanted = {position: position + 1 for position in range(2000)}
    tasks = (client.new_task("add", {"a": position, "b": 1}) for position in wanted)
    got = {}
    for position, answer in client.pipe(server.tasks, tasks):
        assert position not in got
        got[position] = client.value_of(answer.outcome)
    assert got == wanted


def started(server, task_id):
    """Returns once the handler of `py.slow` has spoken."""
    for event in client.watch(server.tasks, task_id):
        if event.HasField("progress") or event.task.progress.current:
            return
    raise AssertionError("the task ended before it was seen to run")


# Far longer than any test waits: it ends only by being stopped.
ENDLESS = {"steps": 1_000_000, "step_ms": 5}


def test_a_cancelled_run_stops_at_the_worker(server, work):
    work(server, "py-1", "--concurrency", "1")
    task_id = client.submit(server.tasks, "py.slow", ENDLESS)
    started(server, task_id)
    answer = server.tasks.Cancel(tasks_pb2.CancelRequest(task_id=task_id, reason="enough"), timeout=PATIENCE)
    assert answer.task.state == task_pb2.TASK_STATE_CANCELLED
    with pytest.raises(client.NotSucceeded, match="cancelled: enough"):
        client.wait(server.tasks, task_id)
    # The only slot is free again: the handler has stopped and its credit has come back.
    assert client.call(server.tasks, "add", {"a": 1, "b": 1}) == 2


def test_a_caller_that_leaves_takes_its_call_along(server, work):
    work(server, "py-1", "--concurrency", "1")
    request = tasks_pb2.CallRequest(task=client.new_task("py.slow", ENDLESS))
    pending = server.tasks.Call.future(request, timeout=PATIENCE)
    for event in server.tasks.Watch(tasks_pb2.WatchRequest(filter=tasks_pb2.TaskFilter(method="py.slow"))):
        if event.HasField("progress"):
            break
    pending.cancel()
    assert client.call(server.tasks, "add", {"a": 1, "b": 1}) == 2


def test_a_drained_worker_finishes_what_it_has_and_leaves(server, work):
    process = work(server)
    task_id = client.submit(server.tasks, "py.slow", {"steps": 20, "step_ms": 5})
    started(server, task_id)
    server.admin.Drain(admin_pb2.DrainRequest(worker_id="py-1", reason="upgrade"), timeout=PATIENCE)
    assert client.wait(server.tasks, task_id) == {"steps": 20}
    process.expect("^left$")
    assert process.child.wait(PATIENCE) == 0


def test_a_worker_told_to_stop_finishes_what_it_has(server, work):
    process = work(server)
    task_id = client.submit(server.tasks, "py.slow", {"steps": 20, "step_ms": 5})
    started(server, task_id)
    assert process.stop() == 0
    task = server.tasks.Get(tasks_pb2.GetRequest(task_id=task_id), timeout=PATIENCE).task
    assert client.value_of(task.outcome) == {"steps": 20}
    assert task.attempt == 1


def test_a_killed_workers_task_moves_on(server, work):
    first = work(server, "py-1")
    retry = task_pb2.RetryPolicy(max_attempts=2, initial_backoff_ms=1)
    task_id = client.submit(server.tasks, "py.slow", {"steps": 200, "step_ms": 5}, retry=retry)
    started(server, task_id)
    first.end()
    work(server, "py-2")
    assert client.wait(server.tasks, task_id) == {"steps": 200}


def test_a_worker_comes_back_to_a_server_that_was_restarted(serve, work):
    first = serve()
    worker = work(first)
    assert first.process.stop() == 0
    second = serve(listen=first.address)
    worker.expect("joined as py-1")
    assert client.call(second.tasks, "add", {"a": 2, "b": 2}) == 4


def test_two_workers_share_load_in_proportion(server, work):
    work(server, "small", "--concurrency", "1")
    work(server, "large", "--concurrency", "3")
    tasks = (client.new_task("py.slow", {"steps": 1, "step_ms": 5}) for _ in range(200))
    assert sum(1 for _ in client.pipe(server.tasks, tasks)) == 200
    finished = {
        worker.id: worker.finished
        for worker in server.admin.Workers(admin_pb2.WorkersRequest(), timeout=PATIENCE).workers
    }
    assert sum(finished.values()) == 200
    assert 1.5 < finished["large"] / finished["small"] < 6


def test_the_sample_clients_commands(server, worker):
    def run(*arguments, stdin=""):
        command = [sys.executable, str(HERE / "client.py"), "--server", server.address, *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=PATIENCE)

    assert run("call", "add", '{"a": 1, "b": 2}').stdout == "3\n"
    task_id = run("submit", "add", '{"a": 3, "b": 4}').stdout.strip()
    assert run("get", task_id).stdout == "7\n"
    assert f"{task_id} FINISHED attempt 1" in run("watch", task_id).stdout
    lines = "".join(json.dumps({"a": n, "b": n}) + "\n" for n in range(3))
    assert sorted(run("pipe", "add", stdin=lines).stdout.splitlines()) == ["0 0", "1 2", "2 4"]
    failed = run("call", "py.fail", '{"code": "no_luck"}')
    assert failed.returncode == 1
    assert "no_luck" in failed.stderr
