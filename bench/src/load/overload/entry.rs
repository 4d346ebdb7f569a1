//! The ways in, each with a caller for every call, and what each has to say when there is no room.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use crewcall_sdk::{
    CallError, Client, Pipe, Refusal,
    proto::{outcome, pipe_outcome},
};
use parking_lot::Mutex;

use crate::{BenchError, case::Way, http1, load::before::connect, task};

/// A server lets 256 calls wait on one connection; more would wait at the client, and none of the server's limits
/// would be met.
const CALL_CONNECTIONS: usize = 8;
/// A server closes HTTP/1 connections that ask for nothing for ten seconds. Well before that they are left alone.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// How calls reach the server.
#[derive(Debug)]
pub(super) enum Entry {
    Pipe(Pipe),
    Call(Vec<Client>),
    Rest(Connections),
}

/// What the contract allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The right result.
    Result,
    /// Refused, because there is no room, with a hint when there may be some.
    Shed,
}

impl Entry {
    pub(super) async fn open(way: Way, url: &str) -> Result<Self, BenchError> {
        Ok(match way {
            Way::Pipe => Self::Pipe(connect(url).await?.pipe()),
            Way::Call => {
                let mut clients = Vec::new();
                for _ in 0..CALL_CONNECTIONS {
                    clients.push(connect(url).await?);
                }
                Self::Call(clients)
            }
            Way::Rest => Self::Rest(Connections { url: url.to_owned(), idle: Mutex::default() }),
        })
    }

    /// Makes one call and waits for its answer.
    ///
    /// # Errors
    /// The answer, in words, when it is none of those that the contract allows.
    pub(super) async fn call(&self, number: u64) -> Result<Answer, String> {
        match self {
            Self::Pipe(pipe) => over_pipe(pipe, number).await,
            Self::Call(clients) => {
                let index = usize::try_from(number).unwrap_or(0) % clients.len().max(1);
                match clients.get(index) {
                    Some(client) => unary(client, number).await,
                    None => Err("there is no connection".to_owned()),
                }
            }
            Self::Rest(connections) => rest(connections, number).await,
        }
    }
}

async fn over_pipe(pipe: &Pipe, number: u64) -> Result<Answer, String> {
    let reply = pipe.call_raw(task::task("add", number, task::SMALL, false)).outcome().await;
    // An error is one of the client or the connection: what the server refuses is an outcome.
    let outcome = reply.map_err(|error| error.to_string())?;
    match &outcome.kind {
        Some(pipe_outcome::Kind::Refusal(refusal)) => shed(&Refusal::from(refusal.clone())),
        _ => task::check(number, &outcome).map(|()| Answer::Result),
    }
}

async fn unary(client: &Client, number: u64) -> Result<Answer, String> {
    let reply = client.call_outcome(task::task("add", number, task::SMALL, false)).await;
    let response = match reply {
        Ok(response) => response,
        Err(CallError::Refused(refusal)) => return shed(&refusal),
        Err(error) => return Err(error.to_string()),
    };
    match response.outcome.and_then(|outcome| outcome.kind) {
        Some(outcome::Kind::Succeeded(result)) if task::is_answer(number, &result.data) => Ok(Answer::Result),
        other => Err(format!("call {number} was answered {other:?}")),
    }
}

fn shed(refusal: &Refusal) -> Result<Answer, String> {
    if refusal.code == tonic::Code::ResourceExhausted && refusal.retry_after.is_some() {
        Ok(Answer::Shed)
    } else {
        Err(format!("{:?} is no RESOURCE_EXHAUSTED with a hint when to come back", refusal))
    }
}

async fn rest(connections: &Connections, number: u64) -> Result<Answer, String> {
    let words = |error: &dyn Display| format!("call {number}: {error}");
    let mut connection = connections.take().await.map_err(|error| words(&error))?;
    let answer = connection.post("/v1/call/add", &task::params(number, task::SMALL)).await;
    let answer = answer.map_err(|error| words(&error))?;
    connections.give_back(connection);
    match (answer.status, answer.retry_after) {
        (200, _) if task::is_answer(number, &answer.body) => Ok(Answer::Result),
        (429, Some(1..)) => Ok(Answer::Shed),
        _ => Err(words(&format_args!("answered {answer:?}"))),
    }
}

/// HTTP/1 connections: as many as there are calls at once.
#[derive(Debug)]
pub(super) struct Connections {
    url: String,
    /// The one used last is on top.
    idle: Mutex<Vec<(http1::Connection, Instant)>>,
}

impl Connections {
    async fn take(&self) -> Result<http1::Connection, BenchError> {
        let idle = {
            let mut idle = self.idle.lock();
            let last = idle.pop().filter(|(_, since)| since.elapsed() < IDLE_MAX);
            if last.is_none() {
                // What lies below is older.
                idle.clear();
            }
            last
        };
        match idle {
            Some((connection, _)) => Ok(connection),
            None => http1::Connection::open(&self.url).await,
        }
    }

    fn give_back(&self, connection: http1::Connection) {
        self.idle.lock().push((connection, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_full_server_that_says_when_to_come_back_has_shed() {
        let refusal = |code, retry_after| Refusal {
            code,
            reason: "queue_full".into(),
            message: "1000 tasks wait".into(),
            retry_after,
        };
        let second = Some(Duration::from_secs(1));
        assert_eq!(shed(&refusal(tonic::Code::ResourceExhausted, second)), Ok(Answer::Shed));
        assert!(shed(&refusal(tonic::Code::ResourceExhausted, None)).is_err());
        assert!(shed(&refusal(tonic::Code::Unavailable, second)).is_err());
    }
}
