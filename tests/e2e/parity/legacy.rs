//! The protocol of go-server as a way to call and a way to work. It carries JSON and the text of an error, and knows no
//! options; what it can say must come out as everywhere else.

use std::collections::HashMap;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use super::{Attempt, Caller, Case, Crew, End, METHODS, Seen};
use crate::{
    grpc::soon,
    harness::Server,
    http::{get, post},
};

/// What callers are told when nobody can serve them.
const NO_WORKER: &str = "服务不可用";

fn is_json(case: &Case) -> bool {
    case.content_type == "application/json"
}

/// `POST /api/execute` and `GET /api/result/{id}`.
pub(super) struct LegacyCaller<'a>(pub(super) &'a Server);

impl Caller for LegacyCaller<'_> {
    const NAME: &'static str = "legacy";

    /// Its calls have one attempt and no other option, so only cases that come to the same can be said.
    fn says(case: &Case) -> bool {
        let changes_nothing = |(name, value): (&String, &Value)| match name.as_str() {
            "metadata" => value.as_object().is_some_and(|pairs| pairs.len() <= 32),
            "priority" => value.as_u64().is_some_and(|priority| priority <= 9),
            "retry" => value["max_attempts"] == 1 || case.method == "fail",
            _ => false,
        };
        is_json(case) && case.options.as_object().is_some_and(|options| options.iter().all(changes_nothing))
    }

    /// An error is its text; what is not a success is an error.
    fn sees(expected: Seen) -> Seen {
        let error = |message: String| Seen::Failed { code: String::new(), message, details: None };
        match expected {
            Seen::Failed { message, .. } => error(message),
            Seen::Cancelled(reason) => error(format!("cancelled: {reason}")),
            // No worker can have registered such a name.
            Seen::Refused(reason) if reason == "invalid_field" => error(NO_WORKER.to_owned()),
            other => other,
        }
    }

    async fn call(&self, case: &Case) -> Seen {
        // Written by hand, or the numbers would not survive.
        let params = String::from_utf8(case.data.to_vec()).unwrap();
        let body = format!(r#"{{"method":{},"params":{params}}}"#, json!(case.method));
        let accepted = post(self.0, "/api/execute", body).await;
        if accepted.status == 413 {
            return Seen::Refused("payload_too_large".to_owned());
        }
        assert_eq!(accepted.status, 200, "{}", accepted.text());
        let id = accepted.text().split_once("\"taskId\":\"").unwrap().1.split('"').next().unwrap().to_owned();
        loop {
            let answer = get(self.0, &format!("/api/result/{id}")).await;
            let text = answer.text();
            // {"result":…,"status":"…","taskId":"…"}
            let (result, rest) =
                text.strip_prefix("{\"result\":").unwrap().rsplit_once(",\"status\":\"").unwrap();
            match rest.split('"').next().unwrap() {
                "done" => {
                    let data = Bytes::from(result.to_owned());
                    return Seen::Succeeded { content_type: "application/json".to_owned(), data };
                }
                "error" => {
                    let message = serde_json::from_str(result).unwrap();
                    return Seen::Failed { code: String::new(), message, details: None };
                }
                // The hold has passed.
                "processing" => {}
                other => panic!("{other}: {text}"),
            }
        }
    }
}

/// A worker at `/api/worker/connect/`.
pub(super) struct LegacyCrew {
    socket: WebSocketStream<TcpStream>,
    /// The protocol does not number attempts.
    attempts: HashMap<String, u64>,
}

impl Crew for LegacyCrew {
    const NAME: &'static str = "a legacy worker";

    /// It cannot say that trying again is useless, nor take what is not JSON.
    fn serves(case: &Case) -> bool {
        is_json(case) && case.method != "fail"
    }

    /// An error is its text.
    fn shows(expected: Seen) -> Seen {
        match expected {
            Seen::Failed { code, message, .. } if code != "run_timeout" => {
                Seen::Failed { code: "handler_error".to_owned(), message, details: None }
            }
            other => other,
        }
    }

    async fn join(server: &Server) -> Self {
        let stream = TcpStream::connect(server.address()).await.unwrap();
        let url = format!("ws://{}/api/worker/connect/", server.address());
        let (mut socket, _) = soon(client_async(url, stream)).await.unwrap();
        let methods = METHODS.map(|name| json!({"name": name, "docs": []}));
        let registration = json!({"group": "g", "methods": methods}).to_string();
        soon(socket.send(Message::text(registration))).await.unwrap();
        // The protocol answers nothing; the status page lists who has registered.
        while get(server, "/api/status").await.json()["workers"].as_array().is_none_or(Vec::is_empty) {
            tokio::task::yield_now().await;
        }
        Self { socket, attempts: HashMap::new() }
    }

    async fn next(&mut self) -> Attempt {
        loop {
            let text = match soon(self.socket.next()).await.expect("closed").unwrap() {
                Message::Text(text) => text.to_string(),
                _ => continue,
            };
            // {"method":…,"params":…,"taskId":"…","type":"task"}
            let Some((_, rest)) = text.split_once(",\"params\":") else { continue };
            let (params, rest) = rest.rsplit_once(",\"taskId\":\"").unwrap();
            let task_id = rest.split('"').next().unwrap().to_owned();
            let method = text.strip_prefix("{\"method\":\"").unwrap().split('"').next().unwrap();
            let number = self.attempts.entry(task_id.clone()).or_default();
            *number += 1;
            return Attempt {
                lease: 0,
                number: *number,
                method: method.to_owned(),
                payload: Bytes::from(params.to_owned()),
                content_type: String::new(),
                task_id,
            };
        }
    }

    async fn end(&mut self, attempt: &Attempt, end: End) {
        let said = match end {
            End::Echo => format!(r#""result":{}"#, String::from_utf8(attempt.payload.to_vec()).unwrap()),
            End::Json(text) => format!(r#""result":{text}"#),
            End::Failed { message, .. } => format!(r#""error":{}"#, json!(message)),
        };
        let answer = format!(r#"{{"type":"result","taskId":"{}",{said}}}"#, attempt.task_id);
        soon(self.socket.send(Message::text(answer))).await.unwrap();
    }
}
