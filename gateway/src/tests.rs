//! The router as it is served: a real engine, a real port, clients that write bytes.

// clippy.toml lets `#[test]` functions panic, which is how they fail; their helpers here do the same.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use crewcall::engine::{self, EngineTask};
use crewcall::handle::Handle;
use crewcall::listener::{self, ListenerSettings};
use crewcall::scheduler::Limits;
use crewcall::shutdown::Shutdown;
use crewcall::store::MemoryStore;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::{Gateway, Settings, fallback};

mod legacy;

/// Far more than anything here needs; reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server of its own for one test.
struct Server {
    address: SocketAddr,
    handle: Handle,
    shutdown: Shutdown,
    edges: tokio::task::JoinHandle<listener::Closed>,
    _engine: EngineTask,
}

impl Server {
    /// With settings that the test changes. Results are held for longer than any test takes, so that asking
    /// for one is waiting for it.
    async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        Self::start_on(ListenerSettings::default(), change).await
    }

    /// The same, on a port with these settings.
    async fn start_on(port: ListenerSettings, change: impl FnOnce(&mut Settings)) -> Self {
        let shutdown = Shutdown::new();
        let mut settings = Settings::new(shutdown.clone());
        settings.legacy_result_hold = PATIENCE;
        change(&mut settings);
        let (handle, engine) = engine::start(Limits::default(), Box::new(MemoryStore::default())).unwrap();
        let gateway = Gateway::new(handle.clone(), settings);
        let routes = gateway.router();
        let app = Router::new().merge(routes.clone()).fallback_service(fallback(routes));
        let app = gateway.front(app);
        let listener = listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let edges = tokio::spawn(listener::serve(listener, None, app, port, shutdown.clone()));
        Self { address, handle, shutdown, edges, _engine: engine }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// One request on a connection of its own: status and body.
    async fn send(&self, method: &str, path: &str, headers: &[&str], body: &str) -> (u16, String) {
        let (status, _, body) = self.exchange(method, path, headers, body).await;
        (status, body)
    }

    /// The same, with the head of the answer.
    async fn exchange(
        &self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: &str,
    ) -> (u16, String, String) {
        let mut socket = self.connect().await;
        socket.write_all(self.request(method, path, headers, body).as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE * 2, socket.read_to_end(&mut answer)).await.unwrap().unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
    }

    fn request(&self, method: &str, path: &str, headers: &[&str], body: &str) -> String {
        let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.send("GET", path, &[], "").await
    }

    async fn post(&self, path: &str, body: &str) -> (u16, String) {
        self.send("POST", path, &[], body).await
    }

    /// Waits until so many workers are connected.
    async fn workers(&self, count: usize) {
        let waiting = async {
            while self.handle.workers().await.unwrap().len() != count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    }
}

/// A legacy worker that does what the test says.
struct Worker {
    socket: WebSocketStream<TcpStream>,
}

impl Worker {
    /// Registered for `method`, and listed.
    async fn join(server: &Server, method: &str) -> Self {
        let count = server.handle.workers().await.unwrap().len();
        let mut worker = Self::knock(server, "/api/worker/connect").await;
        worker.say(&format!(r#"{{"group":"g","methods":[{{"name":"{method}","docs":["d"]}}]}}"#)).await;
        server.workers(count + 1).await;
        worker
    }

    async fn knock(server: &Server, path: &str) -> Self {
        let url = format!("ws://{}{path}", server.address);
        let (socket, _) = client_async(url, server.connect().await).await.unwrap();
        Self { socket }
    }

    async fn say(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// The next message that is no ping; `None` when the socket has ended.
    async fn hear(&mut self) -> Option<String> {
        loop {
            match tokio::time::timeout(PATIENCE, self.socket.next()).await.unwrap()? {
                Ok(Message::Text(text)) if text.contains("\"type\":\"ping\"") => {}
                Ok(Message::Text(text)) => return Some(text.to_string()),
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The id of the next task.
    async fn task(&mut self) -> String {
        let message = self.hear().await.expect("a task");
        serde_json::from_str::<serde_json::Value>(&message).unwrap()["taskId"].as_str().unwrap().to_owned()
    }

    async fn answer(&mut self, id: &str, result: &str) {
        self.say(&format!(r#"{{"type":"result","taskId":"{id}","result":{result}}}"#)).await;
    }
}
