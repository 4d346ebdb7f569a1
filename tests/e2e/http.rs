//! A plain HTTP/1 client, one connection a request, and a WebSocket that speaks JSON.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message, client::IntoClientRequest as _},
};

use crate::{grpc::soon, harness::Server};

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The stable reason of a problem, once it is seen to be a whole one.
    #[track_caller]
    pub(crate) fn reason(&self) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{problem}");
        assert_eq!(problem["title"], StatusCode::from_u16(self.status).unwrap().canonical_reason().unwrap());
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{problem}");
        let reason = problem["reason"].as_str().expect("no reason");
        assert!(problem["type"].as_str().unwrap().ends_with(&format!("docs/rest.md#{reason}")), "{problem}");
        reason.to_owned()
    }
}

/// Sends a request; the answer's body is still to be read. Dropping it closes the connection.
pub(crate) async fn begin(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> http::Response<Incoming> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(target);
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("host", address.to_string());
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body.into())).unwrap();
    soon(sender.send_request(request)).await.unwrap()
}

/// Sends a request and reads the whole answer.
pub(crate) async fn send(
    server: &Server,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Answer {
    send_to(server.address(), method, target, headers, body).await
}

/// [`send`], where the server itself cannot be had.
pub(crate) async fn send_to(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Answer {
    let (parts, body) = begin(address, method, target, headers, body).await.into_parts();
    let body = soon(body.collect()).await.unwrap().to_bytes();
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}

pub(crate) async fn get(server: &Server, target: &str) -> Answer {
    send(server, "GET", target, &[], Bytes::new()).await
}

pub(crate) async fn post(server: &Server, target: &str, body: impl Into<Bytes>) -> Answer {
    send(server, "POST", target, &[], body).await
}

/// One server-sent event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) data: String,
}

impl Event {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap()
    }
}

/// An open stream of events.
#[derive(Debug)]
pub(crate) struct Events {
    body: Incoming,
    buffer: String,
}

impl Events {
    pub(crate) async fn open(server: &Server, target: &str, last: &str) -> Self {
        let last = [("last-event-id", last)];
        let headers = if last[0].1.is_empty() { &[][..] } else { &last[..] };
        let response = begin(server.address(), "GET", target, headers, Bytes::new()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body(), buffer: String::new() }
    }

    /// The next event; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some((block, rest)) = self.buffer.split_once("\n\n") {
                let mut event = Event::default();
                for line in block.lines() {
                    let (field, value) = line.split_once(':').unwrap();
                    let value = value.strip_prefix(' ').unwrap_or(value);
                    match field {
                        "event" => event.name = value.to_owned(),
                        "id" => event.id = value.to_owned(),
                        "data" => event.data.push_str(value),
                        _ => assert_eq!(field, "", "only comments besides: {line}"),
                    }
                }
                self.buffer = rest.to_owned();
                if event != Event::default() {
                    return Some(event);
                }
            }
            let frame = soon(self.body.frame()).await?.unwrap();
            if let Ok(data) = frame.into_data() {
                self.buffer.push_str(std::str::from_utf8(&data).unwrap());
            }
        }
    }
}

/// A worker that speaks JSON, written by hand.
#[derive(Debug)]
pub(crate) struct JsonWorker {
    pub(crate) socket: WebSocketStream<TcpStream>,
    pub(crate) welcome: Value,
    credit: u64,
    seq: u64,
}

impl JsonWorker {
    /// Opens the socket.
    pub(crate) async fn connect(
        server: &Server,
        headers: &[(&'static str, &str)],
    ) -> Result<WebSocketStream<TcpStream>, tungstenite::Error> {
        let mut request = format!("ws://{}/v1/worker", server.address()).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(server.address()).await.unwrap();
        soon(client_async(request, stream)).await.map(|(socket, _)| socket)
    }

    /// Says hello for one method and waits for the welcome.
    pub(crate) async fn join(server: &Server, hello: Value) -> Self {
        let socket = Self::connect(server, &[]).await.unwrap();
        let mut worker = Self { socket, welcome: Value::Null, credit: 0, seq: 0 };
        worker.say(&serde_json::json!({ "hello": hello })).await;
        let mut first = worker.hear().await;
        worker.welcome = first["welcome"].take();
        assert!(worker.welcome.is_object(), "{first}");
        worker
    }

    pub(crate) async fn say(&mut self, frame: &Value) {
        self.say_text(frame.to_string()).await;
    }

    pub(crate) async fn say_text(&mut self, text: impl Into<String>) {
        soon(self.socket.send(Message::text(text.into()))).await.unwrap();
    }

    /// The next message.
    pub(crate) async fn hear_text(&mut self) -> String {
        loop {
            match soon(self.socket.next()).await.expect("closed").unwrap() {
                Message::Text(text) => return text.to_string(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) async fn hear(&mut self) -> Value {
        serde_json::from_str(&self.hear_text().await).unwrap()
    }

    /// The next message that has `field`.
    pub(crate) async fn hear_of(&mut self, field: &str) -> Value {
        loop {
            let mut frame = self.hear().await;
            if !frame[field].is_null() {
                return frame[field].take();
            }
        }
    }

    pub(crate) async fn credit(&mut self, more: u64) {
        self.credit += more;
        let total = self.credit;
        self.say(&serde_json::json!({ "credits": [{ "total": total }] })).await;
    }

    /// The next assignment.
    pub(crate) async fn assigned(&mut self) -> Value {
        let assigned = self.hear_of("assign").await;
        assert_eq!(assigned.as_array().map(Vec::len), Some(1), "{assigned}");
        assigned[0].clone()
    }

    /// Ends an attempt: `end` is `{"succeeded": ..}` or `{"failed": ..}`.
    pub(crate) async fn end(&mut self, lease: &Value, end: Value) {
        self.seq += 1;
        let mut result = end;
        result["lease"] = lease.clone();
        result["seq"] = self.seq.into();
        self.say(&serde_json::json!({ "results": [result] })).await;
    }

    /// Reads until the server closes: the last `error`, the code and the reason of the close.
    pub(crate) async fn closed(&mut self) -> (Value, u16, String) {
        let mut error = Value::Null;
        loop {
            match soon(self.socket.next()).await.expect("closed without saying why").unwrap() {
                Message::Text(text) => {
                    let mut frame: Value = serde_json::from_str(&text).unwrap();
                    error = frame["error"].take();
                }
                Message::Close(Some(close)) => return (error, close.code.into(), close.reason.to_string()),
                _ => {}
            }
        }
    }
}
