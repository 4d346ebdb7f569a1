"""The sample gRPC worker with one more method, `mix.odd`, which the legacy drivers serve too."""

import worker
from crewcall.v1 import worker_pb2


def odd(run):
    n = worker.from_json(run.payload)
    if n % 10 == 0:
        raise worker.Failure("odd", f"no {n}", retryable=False)
    return worker.to_json(2 * n + 1)


# Without a version, as legacy methods are: callers that name none get the newest, and it would take everything.
worker.METHODS.append((worker_pb2.Method(name="mix.odd"), odd))

if __name__ == "__main__":
    worker.main()
