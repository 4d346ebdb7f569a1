#!/usr/bin/env python3
"""A crewcall worker in plain Python: stock grpcio, and stubs generated from proto/. Nothing else.

It shows everything a worker may do: serve methods, take as much work as it has room for, beat, report
progress, stop what was cancelled, hand back what was not begun, come back after a broken connection and
go on where it was, and leave without losing anything.

    python -m grpc_tools.protoc -I proto --python_out=stubs --grpc_python_out=stubs proto/crewcall/v1/*.proto
    PYTHONPATH=stubs python worker.py --server 127.0.0.1:8080 --concurrency 4
"""

import argparse
import collections
import concurrent.futures
import json
import os
import random
import signal
import socket
import threading
import time
import uuid

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from crewcall.v1 import task_pb2, worker_pb2, worker_pb2_grpc

# Entries that wait are put into one frame up to this size; a single larger one goes alone.
FRAME_BYTES = 1 << 20
# No answer changes by asking again: the worker stops and says why.
FINAL = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
}


# --- The methods -------------------------------------------------------------------------------------


class Failure(Exception):
    """Raised by a handler to fail in its own words. Any other exception fails as `handler_error`."""

    def __init__(self, code, message, retryable=None, retry_after_ms=0):
        super().__init__(message)
        self.code = code
        self.retryable = retryable
        self.retry_after_ms = retry_after_ms


class Cancelled(Exception):
    """Raised by a handler that stopped because it was told to."""


def from_json(payload):
    try:
        return json.loads(payload.data)
    except ValueError as error:
        raise Failure("bad_input", f"the payload is not JSON: {error}", retryable=False) from error


def to_json(value):
    # NaN and the infinities are not JSON, whatever Python says.
    return task_pb2.Payload(data=json.dumps(value, allow_nan=False).encode())


def add(run):
    match from_json(run.payload):
        case {"a": int() | float() as a, "b": int() | float() as b}:
            return to_json(a + b)
        case other:
            raise Failure("bad_input", f'wanted {{"a": number, "b": number}}, got {other!r}', retryable=False)


def echo(run):
    return run.payload


def slow(run):
    wanted = from_json(run.payload)
    steps, step_ms = wanted.get("steps", 10), wanted.get("step_ms", 100)
    for step in range(1, steps + 1):
        if run.cancelled.wait(step_ms / 1000):
            raise Cancelled
        run.progress(step, steps, f"step {step} of {steps}")
    return to_json({"steps": steps})


def fail(run):
    wanted = from_json(run.payload)
    raise Failure(
        wanted.get("code", "told_to_fail"),
        wanted.get("message", "py.fail always fails"),
        wanted.get("retryable"),
        wanted.get("retry_after_ms", 0),
    )


# What is registered, and the function that serves it.
METHODS = [
    (worker_pb2.Method(name="add", version="1.0.0", summary="a + b", examples=['{"a": 1, "b": 2}']), add),
    (worker_pb2.Method(name="py.echo", version="1.0.0", summary="The payload, as it came"), echo),
    (
        worker_pb2.Method(
            name="py.slow",
            version="1.0.0",
            summary="Takes its time, says how far it is, stops when cancelled",
            examples=['{"steps": 10, "step_ms": 100}'],
        ),
        slow,
    ),
    (
        worker_pb2.Method(
            name="py.fail",
            version="1.0.0",
            summary="Fails as told",
            examples=['{"code": "no_luck", "message": "not today", "retryable": false}'],
        ),
        fail,
    ),
]


# --- The worker --------------------------------------------------------------------------------------


class Run:
    """One attempt at one task, as its handler sees it."""

    def __init__(self, assign, say):
        self.payload = assign.payload
        self.task_id = assign.task_id
        self.attempt = assign.attempt
        self.metadata = assign.metadata
        # Set when nobody wants the result any more; a handler that takes long should look at it.
        self.cancelled = threading.Event()
        self.lease = assign.lease
        self.method = assign.method
        self.future = None
        self._say = say

    def progress(self, current, total=0, message=""):
        progress = task_pb2.Progress(current=current, total=total, message=message)
        self._say(progress=[worker_pb2.ProgressReport(lease=self.lease, progress=progress)])


class Stream:
    """One connection. The worker outlives it."""

    def __init__(self):
        self.welcome = None
        self.closed = False


class Worker:
    """Serves `methods` until `leave` is called, the server drains it, or an error is final."""

    def __init__(self, server, methods=METHODS, worker_id="", key="", concurrency=1):
        self.server = server
        self.methods = [method for method, _ in methods]
        self.handlers = {method.name: handler for method, handler in methods}
        self.worker_id = worker_id
        self.boot_id = str(uuid.uuid4())
        self.resume_token = ""
        self.metadata = [("authorization", f"Bearer {key}")] if key else []
        self.concurrency = concurrency
        self.pool = concurrent.futures.ThreadPoolExecutor(concurrency)

        # Everything below is touched only while this is held; it is notified of every change.
        self.changed = threading.Condition()
        self.stream = None
        self.outbox = collections.deque()
        self.runs = {}  # by lease: what occupies a slot, cancelled or not
        self.results = {}  # by seq: what the server has not yet called safe
        self.seq = 0
        self.credit = 0
        self.leaving = None

    def run(self):
        """Connects, serves, reconnects. Raises grpc.RpcError when trying again cannot help."""
        options = [
            # Notices a server that vanished without a word.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            # The server bounds payloads; frames of several may be larger than grpcio's default.
            ("grpc.max_receive_message_length", -1),
        ]
        failures = 0
        with grpc.insecure_channel(self.server, options) as channel:
            stub = worker_pb2_grpc.WorkerStub(channel)
            try:
                while self.leaving is None:
                    stream = Stream()
                    try:
                        self._serve(stub, stream)
                    except grpc.RpcError as error:
                        if error.code() in FINAL or reason(error) == "session_replaced":
                            raise
                        print(f"no connection: {error.code().name}: {error.details()}", flush=True)
                    failures = 0 if stream.welcome else failures + 1
                    # Full jitter: a thousand workers of a restarted server do not come back at once.
                    wait = random.uniform(0, min(10, 0.1 * 2 ** min(failures, 10)))
                    with self.changed:
                        self.changed.wait_for(lambda: self.leaving is not None, wait)
            finally:
                with self.changed:
                    for run in self.runs.values():
                        run.cancelled.set()
                self.pool.shutdown()

    def leave(self, why):
        """Takes no more work, finishes what runs, says goodbye; then `run` returns."""
        with self.changed:
            if self.leaving is None:
                self.leaving = why
                self._bye_if_idle()
                self.changed.notify_all()

    def _serve(self, stub, stream):
        frames = stub.Session(self._frames(stream), metadata=self.metadata)
        try:
            for frame in frames:
                self._handle(stream, frame)
        finally:
            with self.changed:
                stream.closed = True
                self.stream = None
                self.changed.notify_all()
            frames.cancel()

    # Writing. grpcio asks for the next frame when it has sent the last one, so whatever was said in the
    # meantime goes into one frame.

    def _frames(self, stream):
        yield self._hello()
        with self.changed:
            self.changed.wait_for(lambda: stream.welcome or stream.closed)
        next_beat = time.monotonic()
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.outbox or stream.closed, next_beat - time.monotonic())
                if stream.closed:
                    return
                frame, size = worker_pb2.SessionRequest(), 0
                while self.outbox and size < FRAME_BYTES:
                    entry = self.outbox.popleft()
                    size += entry.ByteSize()
                    frame.MergeFrom(entry)
                # A beat speaks of all leases, so nothing may be left unsaid before it.
                if not self.outbox and time.monotonic() >= next_beat:
                    frame.beat.CopyFrom(self._beat())
                    next_beat = time.monotonic() + 0.8 * stream.welcome.beat_ms / 1000
            yield frame
            if frame.HasField("bye"):
                return

    def _hello(self):
        with self.changed:
            held = {*self.runs, *(result.lease for result in self.results.values())}
            return worker_pb2.SessionRequest(
                hello=worker_pb2.Hello(
                    protocol_min=1,
                    protocol_max=1,
                    worker_id=self.worker_id,
                    boot_id=self.boot_id,
                    resume_token=self.resume_token,
                    sdk="python-sample",
                    host=socket.gethostname(),
                    pools=[worker_pb2.Pool(concurrency=self.concurrency)],
                    methods=self.methods,
                    in_flight=sorted(held),
                )
            )

    def _beat(self):
        leases = [lease for lease, run in self.runs.items() if not run.cancelled.is_set()]
        digest = 0
        for lease in leases:
            digest ^= lease
        return worker_pb2.Beat(in_flight=len(leases), digest=digest)

    def _say(self, **entries):
        with self.changed:
            # Without a stream there is nobody to tell; `_welcome` says again what still matters.
            if self.stream:
                self.outbox.append(worker_pb2.SessionRequest(**entries))
                self.changed.notify_all()

    # Reading.

    def _handle(self, stream, frame):
        with self.changed:
            if frame.HasField("welcome"):
                self._welcome(stream, frame.welcome)
            for assign in frame.assign:
                self._assign(assign)
            for cancel in frame.cancel:
                if run := self.runs.get(cancel.lease):
                    self._cancel(run)
            for recall in frame.recall:
                if run := self.runs.get(recall.lease):
                    self._give_back(run)
            for error in frame.errors:
                print(f"refused: lease {error.lease}: {error.reason}: {error.message}", flush=True)
                self._forget(lambda result: result.lease == error.lease)
            self._forget(lambda result: result.seq <= frame.durable_seq)
            if frame.control.kind == worker_pb2.Control.KIND_DRAIN:
                self.leave(frame.control.reason)

    def _welcome(self, stream, welcome):
        stream.welcome = welcome
        self.stream = stream
        self.worker_id = welcome.worker_id
        self.resume_token = welcome.resume_token
        self.outbox.clear()
        kept = set(welcome.keep)
        for run in list(self.runs.values()):
            if run.lease not in kept:
                self._cancel(run)
        # A result that was on its way when the connection broke is sent again, under its own number.
        self._forget(lambda result: result.lease not in kept)
        for seq in sorted(self.results):
            self._say(results=[self.results[seq]])
        # Totals begin anew with each stream: what can be taken now.
        self.credit = self.concurrency - len(self.runs)
        if self.leaving is None:
            self._say(credits=[worker_pb2.Credit(total=self.credit)])
        self._bye_if_idle()
        self.changed.notify_all()
        print(f"joined as {self.worker_id}: {', '.join(self.handlers)}", flush=True)

    def _forget(self, done):
        self.results = {seq: result for seq, result in self.results.items() if not done(result)}

    def _assign(self, assign):
        if self.leaving is not None:
            self._say(released=[worker_pb2.Released(lease=assign.lease)])
            return
        run = Run(assign, self._say)
        self.runs[run.lease] = run
        run.future = self.pool.submit(self._run, run)

    def _cancel(self, run):
        run.cancelled.set()
        # One that waits for a thread never begins; one that runs frees its slot when it ends.
        if run.future.cancel():
            self._end(run)

    def _give_back(self, run):
        if run.future.cancel():
            self._end(run, released=[worker_pb2.Released(lease=run.lease)])

    # Running. `_run` is on a thread of the pool; everything above is on the thread that reads.

    def _run(self, run):
        self._say(started=[worker_pb2.Started(lease=run.lease)])
        try:
            kind = {"succeeded": self._fitting(self.handlers[run.method](run))}
        except Cancelled:
            kind = None
        except Failure as failure:
            kind = {"failed": failed(failure.code, str(failure), failure.retryable, failure.retry_after_ms)}
        except Exception as error:  # A handler may raise anything, and the worker goes on.
            kind = {"failed": failed("handler_error", f"{type(error).__name__}: {error}")}
        with self.changed:
            if kind is None or run.cancelled.is_set():
                self._end(run)
                return
            self.seq += 1
            result = worker_pb2.Result(lease=run.lease, seq=self.seq, **kind)
            self.results[self.seq] = result
            self._end(run, results=[result])

    def _fitting(self, payload):
        stream = self.stream
        limit = stream.welcome.max_payload_bytes if stream else 0
        if limit and len(payload.data) > limit:
            size = len(payload.data)
            raise Failure("result_too_large", f"{size} bytes, the server takes {limit}", retryable=False)
        return payload

    def _end(self, run, **last_words):
        """Frees the slot, and says so together with the last word on the run."""
        del self.runs[run.lease]
        if self.leaving is None:
            self.credit += 1
            self._say(**last_words, credits=[worker_pb2.Credit(total=self.credit)])
        else:
            self._say(**last_words)
            self._bye_if_idle()

    def _bye_if_idle(self):
        if self.leaving is not None and not self.runs:
            self._say(bye=worker_pb2.Bye(reason=self.leaving))


def failed(code, message, retryable=None, retry_after_ms=0):
    return worker_pb2.Failure(
        error=task_pb2.TaskError(code=code, message=message),
        retryable=retryable,
        retry_after_ms=retry_after_ms,
    )


def reason(error):
    """The stable reason that every error of the server carries, as google.rpc.ErrorInfo."""
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status else []:
        if detail.Unpack(info):
            return info.reason
    return ""


def main():
    parser = argparse.ArgumentParser(description="A crewcall worker written from the .proto alone.")
    server = os.environ.get("CREWCALL_SERVER", "127.0.0.1:8080")
    key = os.environ.get("CREWCALL_WORKER_KEY", "")
    parser.add_argument("--server", default=server, help=f"host:port (default {server})")
    parser.add_argument("--worker-id", default="", help="stable name; without it the server chooses")
    parser.add_argument("--key", default=key, help="the server's worker key (default $CREWCALL_WORKER_KEY)")
    parser.add_argument("--concurrency", type=int, default=4, help="tasks at once (default 4)")
    args = parser.parse_args()
    server = args.server.removeprefix("http://")
    worker = Worker(server, worker_id=args.worker_id, key=args.key, concurrency=args.concurrency)

    # Blocked here and in every thread begun from here, so that exactly one thread waits for them.
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def leave_when_told():
        worker.leave(signal.Signals(signal.sigwait(signals)).name)

    threading.Thread(target=leave_when_told, daemon=True).start()
    try:
        worker.run()
    except grpc.RpcError as error:
        raise SystemExit(f"{error.code().name} {reason(error)}: {error.details()}") from error
    print("left", flush=True)


if __name__ == "__main__":
    main()
