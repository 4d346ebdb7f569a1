//! Bytes that are no messages, and messages that are no requests.

use crewcall_sdk::proto::{CallRequest, CallResponse};
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use serde_json::json;
use tonic::{Code, body::Body, client::GrpcService as _, transport::Channel};

use super::{adder, client, connect, soon, start};
use crate::harness::Server;

const CALL: &str = "/crewcall.v1.Tasks/Call";
const SUBMIT: &str = "/crewcall.v1.Tasks/Submit";
const PIPE: &str = "/crewcall.v1.Tasks/Pipe";
const WATCH: &str = "/crewcall.v1.Tasks/Watch";
const LIST: &str = "/crewcall.v1.Tasks/List";
const SESSION: &str = "/crewcall.v1.Worker/Session";

/// Sends a body as it is, and returns the status of the answer and the bytes before it.
async fn post(channel: &mut Channel, path: &str, body: Vec<u8>) -> (Code, String, Vec<u8>) {
    std::future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
    let request = http::Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Full::from(body)))
        .unwrap();
    let response = soon(channel.call(request)).await.unwrap();
    let mut headers = response.headers().clone();
    let body = soon(response.into_body().collect()).await.unwrap();
    headers.extend(body.trailers().cloned().unwrap_or_default());
    let text = |name: &str| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let code =
        text("grpc-status").parse::<i32>().unwrap_or_else(|_| panic!("{path}: no status: {headers:?}"));
    (Code::from_i32(code), text("grpc-message"), body.to_bytes().to_vec())
}

/// One gRPC message: not compressed, its length, its bytes.
fn framed(message: &[u8]) -> Vec<u8> {
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    frame
}

fn add() -> Vec<u8> {
    let task = crewcall_sdk::TaskBuilder::new("add").payload(&json!({"a": 1, "b": 2})).build().unwrap();
    CallRequest { task: Some(task) }.encode_to_vec()
}

#[tokio::test]
async fn fields_that_are_unknown_are_passed_over() {
    let server = Server::start();
    let _worker = start(adder(&server)).await;
    let mut channel = connect(&server.url()).await;
    let mut message = add();
    // Field 1000: a varint, 8 bytes, a text, 4 bytes.
    message.extend(b"\xc0\x3e\x2a\xc1\x3e12345678\xc2\x3e\x03abc\xc5\x3e1234");
    let (code, text, body) = post(&mut channel, CALL, framed(&message)).await;
    assert_eq!(code, Code::Ok, "{text}");
    let answer = CallResponse::decode(&body[5..]).unwrap();
    let payload = crewcall_sdk::error::outcome_result(answer.outcome).unwrap();
    assert_eq!(payload.decode::<i64>().unwrap(), 3);
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_and_disturbs_nobody() {
    let server = Server::start();
    let _worker = start(adder(&server)).await;
    let client = client(&server).await;
    let mut channel = connect(&server.url()).await;
    let call = add();
    let mut deep = Vec::new();
    // Groups within groups, the only nesting that a message without recursion can be given.
    deep.resize(10_000, 0xc3);
    let unreadable: Vec<(&str, Vec<u8>)> = vec![
        ("a wrong wire type", framed(b"\x08\x01")),
        ("a truncated message", framed(&call[..call.len() - 3])),
        ("a varint without end", framed(&[0xff; 64])),
        ("a length beyond the end", framed(b"\x0a\xff\xff\xff\xff\x0f")),
        ("a length beyond everything", framed(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")),
        ("field number 0", framed(b"\x00\x01")),
        ("a group without end", framed(b"\x0b\x0b\x0b")),
        ("groups without end", framed(&deep)),
        ("text that is not UTF-8", framed(b"\x0a\x04\x0a\x02\xff\xfe")),
        ("a frame cut short", framed(&call)[..8].to_vec()),
        ("half a frame head", vec![0, 0, 0]),
        ("compression that was not agreed", [&[1], &framed(&call)[1..]].concat()),
        ("a flag that does not exist", [&[7], &framed(&call)[1..]].concat()),
        ("a frame of 4 GiB", vec![0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]),
    ];
    for path in [CALL, SUBMIT, PIPE, WATCH, LIST, SESSION] {
        for (what, body) in &unreadable {
            let (code, text, _) = post(&mut channel, path, body.clone()).await;
            let clear = [Code::InvalidArgument, Code::OutOfRange, Code::Internal, Code::Unimplemented];
            assert!(clear.contains(&code), "{path}, {what}: {code:?} {text}");
            assert!(!text.contains("panic"), "{path}, {what}: {text}");
        }
    }
    let stats = client.stats().await.unwrap();
    assert_eq!((stats.submitted_total, stats.workers), (0, 1), "nothing was executed");
    assert_eq!(client.call::<_, i64>("add", &json!({"a": 1, "b": 2})).await.unwrap(), 3);
    assert!(!server.log().contains("panic"), "{}", server.log());
}

/// A message of a million empty parts is small on the wire and large in memory.
#[tokio::test]
async fn four_mebibytes_of_nothing_are_refused_and_not_kept() {
    const MIB: u64 = 1 << 20;
    let server = Server::start();
    let _worker = start(adder(&server)).await;
    let client = client(&server).await;
    let mut channel = connect(&server.url()).await;
    let of = |part: &[u8]| framed(&part.repeat((4 << 20) / part.len()));
    let hello = |part: &[u8]| {
        let inner = part.repeat((4 << 20) / part.len());
        let mut message = vec![0x0a];
        prost::encoding::encode_varint(inner.len() as u64, &mut message);
        message.extend(inner);
        framed(&message)
    };
    let bodies = [
        (SUBMIT, of(b"\x0a\x00")),
        (PIPE, of(b"\x0a\x00")),
        (PIPE, packed_cancels()),
        (WATCH, of(b"\x0a\x00")),
        (SESSION, of(b"\x12\x00")),
        (SESSION, of(b"\x32\x00")),
        (SESSION, hello(b"\x62\x00")),
        (SESSION, hello(b"\x5a\x00")),
        (SESSION, hello(b"\x3a\x00")),
    ];
    let mut peaks = Vec::new();
    for _ in 0..4 {
        for (path, body) in &bodies {
            let (code, text, _) = post(&mut channel, path, body.clone()).await;
            let clear = [Code::InvalidArgument, Code::OutOfRange, Code::Ok];
            assert!(clear.contains(&code), "{path}: {code:?} {text}");
        }
        peaks.push(server.peak_memory() / MIB);
    }
    // Two million parts of 200 bytes each, for the moment until they are counted; and no more the next time.
    assert!(peaks[3] < 2048 && peaks[3] < peaks[1] * 3 / 2, "peaks in MiB: {peaks:?}");
    assert_eq!(client.call::<_, i64>("add", &json!({"a": 1, "b": 2})).await.unwrap(), 3);
    assert_eq!(client.stats().await.unwrap().workers, 1);
}

/// Packed numbers, one byte each.
fn packed_cancels() -> Vec<u8> {
    let mut message = vec![0x12];
    prost::encoding::encode_varint(4 << 20, &mut message);
    message.resize(message.len() + (4 << 20), 1);
    framed(&message)
}
