//! What can only be seen with a handler of one's own; the abuse of the whole server is in tests/e2e/abuse.rs.

use std::{future::pending, sync::Mutex};

use axum::{
    Router,
    extract::{Request as AxumRequest, State},
    http::{StatusCode, header},
    response::IntoResponse,
    routing::{any, get, post},
};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::*;

/// Far more than anything here needs; reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(200);

struct Running {
    address: SocketAddr,
    shutdown: Shutdown,
    serving: JoinHandle<Closed>,
}

impl Running {
    async fn start(app: Router, settings: ListenerSettings) -> Self {
        let listener = bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::new();
        let serving = tokio::spawn(serve(listener, None, app, settings, shutdown.clone()));
        Self { address, shutdown, serving }
    }

    async fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    async fn closed(self) -> Closed {
        timeout(PATIENCE, self.serving).await.unwrap().unwrap()
    }
}

async fn answer(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

fn request(method: &str, path: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{more}\r\n")
}

#[tokio::test]
async fn a_handler_sees_the_peer() {
    let app = Router::new()
        .route("/peer", get(|ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() }));
    let server = Running::start(app, ListenerSettings::default()).await;
    let client = server.send(&request("GET", "/peer", "")).await;
    let address = client.local_addr().unwrap().to_string();
    assert!(answer(client).await.ends_with(&address));
}

#[tokio::test]
async fn a_body_that_stops_is_an_error_for_its_handler_and_one_that_goes_on_is_not() {
    let app = Router::new().route(
        "/length",
        post(|body: Result<Bytes, axum::extract::rejection::BytesRejection>| async move {
            body.map(|body| body.len().to_string()).map_err(|error| error.body_text())
        }),
    );
    let settings = ListenerSettings { body_timeout: SHORT, ..ListenerSettings::default() };
    let server = Running::start(app, settings).await;

    let stopped = server.send(&(request("POST", "/length", "content-length: 10\r\n") + "abc")).await;
    let answer_to_stopped = answer(stopped).await;
    assert!(answer_to_stopped.contains("no byte of the request body came for 200ms"), "{answer_to_stopped}");

    let whole = server.send(&(request("POST", "/length", "content-length: 10\r\n") + "0123456789")).await;
    assert!(answer(whole).await.ends_with("10"));
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_closed() {
    let (dropped, was_dropped) = oneshot::channel::<()>();
    let dropped = Arc::new(Mutex::new(Some(dropped)));
    // An endless answer; the sender in it tells when it is dropped.
    let app = Router::new().route(
        "/endless",
        get(move || async move {
            let guard = dropped.lock().unwrap().take();
            let block = Bytes::from_static(&[0; 64 * 1024]);
            Body::from_stream(futures_util::stream::iter(std::iter::repeat_with(move || {
                let _kept = &guard;
                Ok::<_, Infallible>(block.clone())
            })))
        }),
    );
    let settings = ListenerSettings { write_timeout: SHORT, ..ListenerSettings::default() };
    let server = Running::start(app, settings).await;
    let client = server.send(&request("GET", "/endless", "")).await;
    assert!(
        timeout(PATIENCE, was_dropped).await.unwrap().is_err(),
        "the answer is dropped with the connection"
    );
    drop(client);
}

#[tokio::test]
async fn an_upgraded_connection_keeps_its_place_until_it_closes() {
    let upgrade = |mut request: AxumRequest| async move {
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut socket = TokioIo::new(upgraded.await.unwrap());
            // Until the client closes.
            let _ = socket.read_to_end(&mut Vec::new()).await;
        });
        (StatusCode::SWITCHING_PROTOCOLS, [(header::CONNECTION, "upgrade"), (header::UPGRADE, "echo")])
            .into_response()
    };
    let app = Router::new().route("/upgrade", any(upgrade)).route("/hello", get(|| async { "hello" }));
    let settings = ListenerSettings { max_connections: 1, ..ListenerSettings::default() };
    let server = Running::start(app, settings).await;

    let mut upgraded =
        server.send("GET /upgrade HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
    let mut head = vec![0; "HTTP/1.1 101".len()];
    upgraded.read_exact(&mut head).await.unwrap();
    assert_eq!(head, b"HTTP/1.1 101");

    let mut waiting = server.send(&request("GET", "/hello", "")).await;
    assert!(timeout(SHORT, waiting.read_u8()).await.is_err(), "served beyond the limit");
    drop(upgraded);
    assert!(answer(waiting).await.ends_with("hello"));
}

/// `/wait` tells that it runs and answers when told to.
fn waiting_app() -> (Router, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (running, is_running) = mpsc::channel(1);
    let (go_on, may_go_on) = mpsc::channel(1);
    let state = Arc::new((running, tokio::sync::Mutex::new(may_go_on)));
    type Gate = Arc<(mpsc::Sender<()>, tokio::sync::Mutex<mpsc::Receiver<()>>)>;
    let wait = |State(gate): State<Gate>| async move {
        gate.0.send(()).await.unwrap();
        gate.1.lock().await.recv().await;
        "answered"
    };
    (Router::new().route("/wait", get(wait)).with_state(state), is_running, go_on)
}

#[tokio::test]
async fn stopping_answers_what_is_open_and_accepts_nothing_new() {
    let (app, mut is_running, go_on) = waiting_app();
    let server = Running::start(app, ListenerSettings::default()).await;
    let open = server.send("GET /wait HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let silent = TcpStream::connect(server.address).await.unwrap();
    is_running.recv().await.unwrap();

    server.shutdown.stop();
    assert_eq!(answer(silent).await, "", "it asked for nothing");
    assert!(TcpStream::connect(server.address).await.is_err(), "the port is closed");
    go_on.send(()).await.unwrap();
    assert!(answer(open).await.ends_with("answered"), "and closed, though it could have been kept alive");
    assert_eq!(server.closed().await, Closed { cut: 0 });
}

#[tokio::test]
async fn cutting_closes_what_never_ends() {
    let (running, is_running) = oneshot::channel();
    let running = Arc::new(Mutex::new(Some(running)));
    let app = Router::new().route(
        "/never",
        get(move || async move {
            running.lock().unwrap().take().unwrap().send(()).unwrap();
            pending::<()>().await;
        }),
    );
    let server = Running::start(app, ListenerSettings::default()).await;
    let open = server.send(&request("GET", "/never", "")).await;
    is_running.await.unwrap();
    let shutdown = server.shutdown.clone();
    shutdown.cut();
    assert_eq!(server.closed().await, Closed { cut: 1 });
    assert_eq!(answer(open).await, "");
}

#[tokio::test]
async fn a_bad_address_is_named_with_what_to_do() {
    let taken = bind("127.0.0.1:0").await.unwrap();
    for (address, says) in [
        (taken.local_addr().unwrap().to_string(), "another program has this port"),
        ("192.0.2.1:0".to_owned(), "no network interface of this machine"),
        ("8080".to_owned(), "the form is HOST:PORT"),
        ("127.0.0.1:99999".to_owned(), "the form is HOST:PORT"),
    ] {
        let error = bind(&address).await.unwrap_err().to_string();
        assert!(error.contains(&format!("cannot listen on {address}: ")) && error.contains(says), "{error}");
    }
    assert!(bind("localhost:0").await.is_ok(), "names are resolved");
}
