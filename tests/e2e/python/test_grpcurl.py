"""grpcurl with no .proto at hand: reflection tells it everything."""

import base64
import json

import pytest

PACKAGE = "crewcall.v1"


def payload(value):
    return {"data": base64.b64encode(json.dumps(value).encode()).decode()}


def test_it_lists_the_services(grpcurl):
    services = set(grpcurl("list").split())
    assert {f"{PACKAGE}.{name}" for name in ("Tasks", "Worker", "Admin")} <= services
    assert "grpc.health.v1.Health" in services


@pytest.mark.parametrize(
    ("symbol", "says"),
    [
        (f"{PACKAGE}.Tasks", "rpc Call ( .crewcall.v1.CallRequest ) returns ( .crewcall.v1.CallResponse );"),
        (f"{PACKAGE}.Worker", "rpc Session ( stream .crewcall.v1.SessionRequest )"),
        (f"{PACKAGE}.NewTask", "string method = 1;"),
    ],
)
def test_it_describes(grpcurl, symbol, says):
    assert says in grpcurl("describe", symbol)


def test_it_calls(grpcurl, worker):
    task = {"method": "add", "payload": payload({"a": 1, "b": 2})}
    answer = json.loads(grpcurl(f"{PACKAGE}.Tasks/Call", data={"task": task}))
    assert base64.b64decode(answer["outcome"]["succeeded"]["data"]) == b"3"
    assert len(answer["taskId"]) == 36


def test_it_submits_watches_and_lists(grpcurl, worker):
    task = {"method": "add", "payload": payload({"a": 2, "b": 3})}
    (result,) = json.loads(grpcurl(f"{PACKAGE}.Tasks/Submit", data={"tasks": [task]}))["results"]
    task_id = result["taskId"]
    assert "TASK_STATE_FINISHED" in grpcurl(f"{PACKAGE}.Tasks/Watch", data={"taskIds": [task_id]})
    assert task_id in grpcurl(f"{PACKAGE}.Tasks/List", data={"filter": {"method": "add"}})


def test_it_sees_who_serves_what(grpcurl, worker):
    workers = json.loads(grpcurl(f"{PACKAGE}.Admin/Workers"))["workers"]
    assert [worker["id"] for worker in workers] == ["py-1"]
    methods = json.loads(grpcurl(f"{PACKAGE}.Admin/Methods"))["methods"]
    assert "add" in [method["method"]["name"] for method in methods]


def test_it_asks_for_health(grpcurl):
    for service in ("", f"{PACKAGE}.Tasks", f"{PACKAGE}.Worker"):
        answer = grpcurl("grpc.health.v1.Health/Check", data={"service": service})
        assert json.loads(answer) == {"status": "SERVING"}
    with pytest.raises(RuntimeError, match="NotFound"):
        grpcurl("grpc.health.v1.Health/Check", data={"service": "crewcall.v1.Ghost"})


def test_it_shows_why_a_request_is_refused(grpcurl):
    with pytest.raises(RuntimeError) as refused:
        grpcurl(f"{PACKAGE}.Tasks/Call", data={"task": {"method": ""}})
    assert "InvalidArgument" in str(refused.value)
    assert "invalid_field" in str(refused.value)
