#!/usr/bin/env python3
"""A crewcall client in plain Python: stock grpcio, and stubs generated from proto/. Nothing else.

    python -m grpc_tools.protoc -I proto --python_out=stubs --grpc_python_out=stubs proto/crewcall/v1/*.proto
    PYTHONPATH=stubs python client.py call add '{"a": 1, "b": 2}'
"""

import argparse
import itertools
import json
import os
import sys
import threading

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from crewcall.v1 import task_pb2, tasks_pb2, tasks_pb2_grpc

# Calls that one frame of a pipe carries at most.
PIPE_FRAME = 100
# Tasks end in one of these and stay there.
ENDED = {
    task_pb2.TASK_STATE_FINISHED,
    task_pb2.TASK_STATE_DEAD,
    task_pb2.TASK_STATE_CANCELLED,
    task_pb2.TASK_STATE_EXPIRED,
}


class NotSucceeded(Exception):
    """The task ended some other way: `outcome` is `failed`, `cancelled` or `expired`."""

    def __init__(self, outcome):
        self.outcome = outcome
        match outcome.WhichOneof("kind"):
            case "failed":
                text = f"failed: {outcome.failed.code}: {outcome.failed.message}"
            case "cancelled":
                text = f"cancelled: {outcome.cancelled}"
            case "expired":
                text = f"expired: {task_pb2.ExpiredReason.Name(outcome.expired)}"
            case unknown:
                text = f"ended in a way this client does not know: {unknown}"
        super().__init__(text)


def new_task(method, value, **options):
    """`value` as JSON, for `method`. Options are the fields of TaskOptions."""
    payload = task_pb2.Payload(data=json.dumps(value, allow_nan=False).encode())
    return tasks_pb2.NewTask(method=method, payload=payload, options=task_pb2.TaskOptions(**options))


def value_of(outcome):
    """What the method returned. Raises NotSucceeded when it did not."""
    if outcome.WhichOneof("kind") != "succeeded":
        raise NotSucceeded(outcome)
    return json.loads(outcome.succeeded.data)


def call(tasks, method, value, timeout=30.0, **options):
    """Runs a method and returns its value. The timeout is also the deadline of the task."""
    request = tasks_pb2.CallRequest(task=new_task(method, value, **options))
    return value_of(tasks.Call(request, timeout=timeout).outcome)


def submit(tasks, method, value, **options):
    """Hands in one task and returns its id. Once it returns, the server has the task."""
    request = tasks_pb2.SubmitRequest(tasks=[new_task(method, value, **options)])
    (result,) = tasks.Submit(request, timeout=30).results
    if not result.task_id:
        raise RuntimeError(f"refused: {result.refusal.reason}: {result.refusal.message}")
    return result.task_id


def wait(tasks, task_id):
    """Waits for the outcome of a submitted task and returns its value."""
    while True:
        # The server holds the answer back until the outcome is known, 60 s at most; then we ask again.
        task = tasks.Get(tasks_pb2.GetRequest(task_id=task_id, wait_ms=60_000), timeout=70).task
        if task.state in ENDED:
            return value_of(task.outcome)


def watch(tasks, *task_ids, cursor=""):
    """Yields what happens to the tasks until all have ended.

    After a broken connection, call it again with the `cursor` of the last response seen.
    """
    yield from tasks.Watch(tasks_pb2.WatchRequest(task_ids=task_ids, cursor=cursor))


def pipe(tasks, new_tasks, in_flight=1000):
    """Runs many tasks over one stream; yields (position, PipeOutcome) as they end, in any order."""
    room = threading.Semaphore(max(in_flight, PIPE_FRAME))

    def frames():
        numbered = enumerate(new_tasks)
        while batch := list(itertools.islice(numbered, PIPE_FRAME)):
            for _ in batch:
                room.acquire()
            yield tasks_pb2.PipeRequest(
                calls=[tasks_pb2.PipeCall(call_id=position, task=task) for position, task in batch]
            )

    answers = tasks.Pipe(frames())
    try:
        for frame in answers:
            for answer in frame.outcomes:
                room.release()
                yield answer.call_id, answer
    finally:
        answers.cancel()
        # Lets go of a frame that waits for room nobody will make.
        room.release(PIPE_FRAME)


def reason(error):
    """The stable reason that every error of the server carries, as google.rpc.ErrorInfo."""
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status else []:
        if detail.Unpack(info):
            return info.reason
    return ""


# --- The command line --------------------------------------------------------------------------------


def print_event(response):
    match response.WhichOneof("event"):
        case "task":
            state = task_pb2.TaskState.Name(response.task.state).removeprefix("TASK_STATE_")
            print(f"{response.task.id} {state} attempt {response.task.attempt}", flush=True)
        case "progress":
            task_id, progress = response.progress.task_id, response.progress.progress
            print(f"{task_id} {progress.current}/{progress.total} {progress.message}", flush=True)
        case "chunk":
            chunk = response.chunk
            print(f"{chunk.task_id} chunk {chunk.index}: {chunk.data.data!r}", flush=True)


def run(tasks, args):
    match args.command:
        case "call":
            print(json.dumps(call(tasks, args.method, json.loads(args.json))))
        case "submit":
            print(submit(tasks, args.method, json.loads(args.json)))
        case "get":
            print(json.dumps(wait(tasks, args.task_id)))
        case "watch":
            for response in watch(tasks, args.task_id):
                print_event(response)
        case "pipe":
            lines = (new_task(args.method, json.loads(line)) for line in sys.stdin)
            for position, answer in pipe(tasks, lines):
                if answer.WhichOneof("kind") == "refusal":
                    print(position, f"refused: {answer.refusal.reason}: {answer.refusal.message}")
                elif answer.outcome.WhichOneof("kind") == "succeeded":
                    print(position, answer.outcome.succeeded.data.decode())
                else:
                    print(position, NotSucceeded(answer.outcome))


def main():
    parser = argparse.ArgumentParser(description="A crewcall client written from the .proto alone.")
    server = os.environ.get("CREWCALL_SERVER", "127.0.0.1:8080")
    parser.add_argument("--server", default=server, help=f"host:port (default {server})")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, arguments, text in [
        ("call", ["method", "json"], "run a method, print its value"),
        ("submit", ["method", "json"], "hand in a task, print its id"),
        ("get", ["task_id"], "wait for a task, print its value"),
        ("watch", ["task_id"], "print what happens to a task"),
        ("pipe", ["method"], "one call for each line of JSON on standard input"),
    ]:
        command = commands.add_parser(name, help=text)
        for argument in arguments:
            command.add_argument(argument)
    args = parser.parse_args()
    with grpc.insecure_channel(args.server.removeprefix("http://")) as channel:
        try:
            run(tasks_pb2_grpc.TasksStub(channel), args)
        except NotSucceeded as error:
            raise SystemExit(str(error)) from error
        except grpc.RpcError as error:
            raise SystemExit(f"{error.code().name} {reason(error)}: {error.details()}") from error


if __name__ == "__main__":
    main()
