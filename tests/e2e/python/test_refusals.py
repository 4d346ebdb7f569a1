"""What a stock client is told when it asks for something wrong, and that nothing else is disturbed."""

import threading

import client
import grpc
import pytest
from conftest import PATIENCE, ended_with
from crewcall.v1 import admin_pb2, task_pb2, tasks_pb2, worker_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

NO_TASK = "01890000-0000-7000-8000-000000000000"


def details(error):
    """(ErrorInfo, RetryInfo or None)."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    found = None
    for detail in rpc_status.from_call(error).details:
        detail.Unpack(info)
        if detail.Unpack(retry):
            found = retry
    return info, found


def call(method="add", payload=b"{}", **options):
    task = tasks_pb2.NewTask(
        method=method, payload=task_pb2.Payload(data=payload), options=task_pb2.TaskOptions(**options)
    )
    return "Call", tasks_pb2.CallRequest(task=task)


def by_id(verb, task_id):
    return verb, getattr(tasks_pb2, f"{verb}Request")(task_id=task_id)


TOO_MANY = tasks_pb2.SubmitRequest(tasks=[tasks_pb2.NewTask(method="add")] * 10_001)
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        (("Call", tasks_pb2.CallRequest()), INVALID, "invalid_field"),
        (call(method=""), INVALID, "invalid_field"),
        (call(method=" add"), INVALID, "invalid_field"),
        (call(method="a\nb"), INVALID, "invalid_field"),
        (call(method="m" * 257), INVALID, "invalid_field"),
        (call(priority=10), INVALID, "invalid_field"),
        (call(target=task_pb2.Target(version="not a range")), INVALID, "invalid_field"),
        (call(idempotency_key="k" * 257), INVALID, "invalid_field"),
        (call(retry=task_pb2.RetryPolicy(max_attempts=1001)), INVALID, "invalid_field"),
        (call(durability=99), INVALID, "invalid_field"),
        (call(payload=b"x" * ((4 << 20) + 1)), INVALID, "payload_too_large"),
        (("Submit", tasks_pb2.SubmitRequest()), INVALID, None),
        (("Submit", TOO_MANY), INVALID, "too_many_items"),
        (by_id("Get", "not-an-id"), None, None),
        (by_id("Get", NO_TASK), NOT_FOUND, "task_not_found"),
        (by_id("Cancel", NO_TASK), NOT_FOUND, "task_not_found"),
        (by_id("Retry", NO_TASK), NOT_FOUND, "task_not_found"),
        (by_id("Explain", NO_TASK), NOT_FOUND, "task_not_found"),
        (("List", tasks_pb2.ListRequest(page_token="forged")), INVALID, "invalid_field"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_request_is_refused_with_its_reason(server, request_, code, reason):
    verb, message = request_
    error = ended_with(lambda: getattr(server.tasks, verb)(message, timeout=PATIENCE))
    if code is None:
        # A malformed id is both: no such task, and no id at all.
        assert error.code() in (INVALID, NOT_FOUND)
    else:
        assert error.code() == code
    info, retry = details(error)
    assert info.domain == "crewcall"
    assert info.reason == reason or (reason is None and info.reason)
    assert error.details()
    # Waiting does not help: nothing must suggest it.
    assert retry is None


def test_the_message_names_the_value(server):
    _, message = call(priority=77)
    assert "77" in ended_with(lambda: server.tasks.Call(message, timeout=PATIENCE)).details()
    _, message = by_id("Get", NO_TASK)
    assert NO_TASK in ended_with(lambda: server.tasks.Get(message, timeout=PATIENCE)).details()


def test_an_unknown_id_ends_a_watch(server):
    error = ended_with(lambda: list(client.watch(server.tasks, NO_TASK)))
    assert error.code() == NOT_FOUND
    assert details(error)[0].reason == "task_not_found"


def test_one_wrong_task_of_a_submission_leaves_the_others_alone(server, worker):
    request = tasks_pb2.SubmitRequest(
        tasks=[
            client.new_task("add", {"a": 1, "b": 1}),
            client.new_task("", {}),
            client.new_task("add", {"a": 2, "b": 2}),
        ]
    )
    first, second, third = server.tasks.Submit(request, timeout=PATIENCE).results
    assert second.task_id == ""
    assert second.refusal.code == INVALID.value[0]
    assert second.refusal.reason == "invalid_field"
    assert client.wait(server.tasks, first.task_id) == 2
    assert client.wait(server.tasks, third.task_id) == 4


def test_a_key_used_twice_is_attached_or_refused(server, worker):
    first = client.submit(server.tasks, "add", {"a": 1, "b": 1}, idempotency_key="once")
    assert client.submit(server.tasks, "add", {"a": 1, "b": 1}, idempotency_key="once") == first
    _, message = call(payload=b'{"a": 9, "b": 9}', idempotency_key="once")
    error = ended_with(lambda: server.tasks.Call(message, timeout=PATIENCE))
    assert error.code() == grpc.StatusCode.ALREADY_EXISTS
    assert details(error)[0].reason == "idempotency_conflict"


def test_an_ended_task_cannot_be_cancelled(server, worker):
    task_id = client.submit(server.tasks, "add", {"a": 1, "b": 1})
    client.wait(server.tasks, task_id)
    _, message = by_id("Cancel", task_id)
    error = ended_with(lambda: server.tasks.Cancel(message, timeout=PATIENCE))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert details(error)[0].reason == "task_ended"


def test_an_unknown_worker_cannot_be_drained(server):
    request = admin_pb2.DrainRequest(worker_id="ghost")
    error = ended_with(lambda: server.admin.Drain(request, timeout=PATIENCE))
    assert error.code() == NOT_FOUND
    assert details(error)[0].reason == "worker_not_found"


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 64,  # no such field numbers
        b"\x0a\xff\xff\xff\xff\x0f",  # a length beyond the message
        b"\x0a\x7f",  # cut short
        b"\x08" + b"\xff" * 11,  # a number too long to be one
    ],
)
def test_bytes_that_are_no_message_are_refused_and_disturb_nobody(server, worker, garbage):
    raw = server.channel.unary_unary("/crewcall.v1.Tasks/Call")
    error = ended_with(lambda: raw(garbage, timeout=PATIENCE))
    assert error.code() in (INVALID, grpc.StatusCode.INTERNAL, grpc.StatusCode.OUT_OF_RANGE)
    assert client.call(server.tasks, "add", {"a": 1, "b": 2}) == 3


def test_an_unknown_rpc_is_unimplemented(server):
    raw = server.channel.unary_unary("/crewcall.v1.Tasks/Guess")
    assert ended_with(lambda: raw(b"", timeout=PATIENCE)).code() == grpc.StatusCode.UNIMPLEMENTED


def session(server, *frames, key=None):
    metadata = [("authorization", f"Bearer {key}")] if key else []
    return ended_with(lambda: list(server.worker.Session(iter(frames), metadata=metadata, timeout=PATIENCE)))


def hello(**fields):
    return worker_pb2.SessionRequest(hello=worker_pb2.Hello(**fields))


def test_a_worker_without_the_key_is_turned_away(serve):
    server = serve("--worker-key", "right")
    for key in (None, "wrong", "right-but-longer"):
        error = session(server, hello(worker_id="w"), key=key)
        assert error.code() == grpc.StatusCode.UNAUTHENTICATED
        assert details(error)[0].reason == "worker_key_required"
        assert "right" not in error.details()


def test_a_worker_with_the_key_serves(serve, work):
    server = serve("--worker-key", "right")
    work(server, "py-1", "--key", "right")
    assert client.call(server.tasks, "add", {"a": 1, "b": 2}) == 3


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (worker_pb2.SessionRequest(beat=worker_pb2.Beat()), "hello_expected"),
        (hello(worker_id="w" * 129), "invalid_field"),
        (hello(worker_id="w", protocol_min=2, protocol_max=3), "protocol_unsupported"),
        (hello(worker_id="w", pools=[worker_pb2.Pool(concurrency=0)]), "invalid_field"),
        (hello(worker_id="w", pools=[worker_pb2.Pool(concurrency=65_537)]), "invalid_field"),
        (hello(worker_id="w", methods=[worker_pb2.Method(name="")]), "invalid_field"),
        (hello(worker_id="w", methods=[worker_pb2.Method(name="m", version="one")]), "invalid_field"),
        (hello(worker_id="w", methods=[worker_pb2.Method(name="m", pool="none")]), "invalid_field"),
    ],
)
def test_a_session_that_begins_wrongly_is_ended(server, frame, reason):
    error = session(server, frame)
    assert error.code() == INVALID
    assert details(error)[0].reason == reason


def test_a_forged_lease_changes_nothing(server, work):
    work(server, "py-1", "--concurrency", "1")
    task_id = client.submit(server.tasks, "py.slow", {"steps": 200, "step_ms": 5})
    for event in client.watch(server.tasks, task_id):
        if event.HasField("progress"):
            break

    # A second worker claims results for every lease there can be so far.
    forged = [
        worker_pb2.Result(lease=lease, seq=lease, succeeded=task_pb2.Payload(data=b'"forged"'))
        for lease in range(1, 101)
    ]
    frames = [hello(worker_id="forger"), worker_pb2.SessionRequest(results=forged)]
    refused = []
    # The stream stays open until all refusals are in; `stop` then ends it.
    stop = threading.Event()

    def say():
        yield from frames
        stop.wait(PATIENCE)
        yield worker_pb2.SessionRequest(bye=worker_pb2.Bye())

    for frame in server.worker.Session(say(), timeout=PATIENCE):
        refused += frame.errors
        if len(refused) == len(forged):
            stop.set()
    assert {error.reason for error in refused} <= {"not_your_lease", "stale_lease"}
    assert "not_your_lease" in {error.reason for error in refused}
    assert client.wait(server.tasks, task_id) == {"steps": 200}
