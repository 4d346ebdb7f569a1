//! Starting and stopping: what it prints, what it answers, how it ends.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
};

use crewcall_sdk::{Client, Context, HandlerError, Worker};
use tokio::sync::{mpsc, watch};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, ServerName},
};

use crate::{
    harness::{PATIENCE, Server, crewcall},
    raw::{self, Http2},
};

#[test]
fn it_says_where_it_listens_and_what_it_stores() {
    let durable = Server::start();
    let store = durable.announcement.last().expect("the store is announced");
    assert!(store.starts_with("store: embedded (crewcall-data"), "{store}");
    let server = Server::builder().arg("--ephemeral").start();
    let url = server.url();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        server.announcement,
        [
            format!("crewcall {version} listening on {url} (gRPC and HTTP)"),
            format!("web page: {url}/"),
            "store: memory (nothing survives a restart)".to_owned(),
        ]
    );
}

#[test]
fn no_command_means_serve() {
    let mut command = crewcall::<&str>([]);
    command.env("CREWCALL_LISTEN", "nonsense");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(3), "it tried to listen: {output:?}");
}

#[test]
fn health_readiness_and_the_page_answer() {
    let server = Server::start();
    for (path, status, body) in [
        ("/healthz", "200 OK", "ok\n"),
        ("/readyz", "200 OK", "ready\n"),
        ("/", "200 OK", "crewcall is running"),
        ("/nothing", "404 Not Found", "\"reason\":\"not_found\""),
    ] {
        let answer = raw::get(server.address(), path).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{path}: {answer}");
        assert!(answer.contains(body), "{path}: {answer}");
    }
}

#[test]
fn an_unknown_grpc_method_is_unimplemented() {
    let server = Server::start();
    let request = "POST /no.such.Service/Method HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc+proto\r\n\
                   content-length: 0\r\nconnection: close\r\n\r\n";
    let answer = raw::exchange(server.address(), request.as_bytes()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("grpc-status: 12"), "{answer}");
}

#[test]
fn a_signal_ends_it_in_order() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::start();
        let mut idle = Http2::open(server.address()).unwrap();
        idle.get(1, "/healthz").unwrap();
        server.signal(signal);
        assert_eq!(idle.until_closed().goaway, Some(0), "NO_ERROR");
        assert_eq!(server.wait().code(), Some(0), "SIG{signal}");
    }
}

#[tokio::test]
async fn a_call_that_runs_is_answered_before_the_end() {
    let mut server = Server::start();
    let (running, mut is_running) = mpsc::channel(1);
    let (go_on, may_go_on) = watch::channel(false);
    let worker = Worker::builder(server.url())
        .method("wait", move |_: Context, (): ()| {
            let (running, mut may_go_on) = (running.clone(), may_go_on.clone());
            async move {
                running.send(()).await.unwrap();
                may_go_on.wait_for(|go_on| *go_on).await.unwrap();
                Ok::<_, HandlerError>("answered")
            }
        })
        .build()
        .unwrap()
        .start();
    worker.wait_connected().await.unwrap();
    let client = Client::connect(server.url()).await.unwrap();
    let call = tokio::spawn(async move { client.call::<_, String>("wait", &()).await });
    is_running.recv().await.unwrap();

    server.signal("TERM");
    until_refused(server.address()).await;
    go_on.send(true).unwrap();
    assert_eq!(call.await.unwrap().unwrap(), "answered");
    let status = tokio::task::spawn_blocking(move || server.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0));
}

/// Ends when nobody listens at `address` any more.
async fn until_refused(address: SocketAddr) {
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_peer_that_does_not_let_go_is_cut_at_the_grace() {
    let mut server = Server::builder().args(["--shutdown-grace", "200ms"]).start();
    let mut stubborn = Http2::open(server.address()).unwrap();
    stubborn.get(1, "/healthz").unwrap();
    stubborn.answer_pings = false;
    server.signal("TERM");
    stubborn.until_closed();
    assert_eq!(server.wait().code(), Some(0));
    assert!(server.log().contains("still open after the grace"), "{}", server.log());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Server::builder().args(["--shutdown-grace", "10m"]).start();
    let mut stubborn = Http2::open(server.address()).unwrap();
    stubborn.get(1, "/healthz").unwrap();
    stubborn.answer_pings = false;
    server.signal("TERM");
    stubborn.until_goaway();
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(130));
}

#[test]
fn a_taken_port_is_named_with_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = Server::builder().listen(&address).fails();
    assert_eq!(ended.status.code(), Some(3));
    assert!(ended.stderr.contains(&format!("cannot listen on {address}")), "{}", ended.stderr);
    assert!(ended.stderr.contains("another program has this port"), "{}", ended.stderr);
    assert_eq!(ended.stdout, "", "nothing is announced");
}

#[test]
fn an_open_port_without_a_key_is_warned_about_and_the_key_never_shown() {
    let open = Server::builder().listen("0.0.0.0:0").start();
    assert!(open.log().contains("WARNING"), "{}", open.log());
    let keyed = Server::builder()
        .listen("0.0.0.0:0")
        .env("CREWCALL_WORKER_KEY", "canary-0451")
        .env("CREWCALL_LOG", "trace")
        .start();
    assert!(!keyed.log().contains("WARNING"), "{}", keyed.log());
    assert!(!keyed.log().contains("canary"), "{}", keyed.log());
    let help = crewcall(["serve", "--help"]).env("CREWCALL_WORKER_KEY", "canary-0451").output().unwrap();
    assert!(!String::from_utf8_lossy(&help.stdout).contains("canary"));
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("crewcall.toml");
    fs::write(&file, "tls_cert = 'file.pem'\ntls_key = 'file.key'\n").unwrap();
    let server = || Server::builder().env("CREWCALL_CONFIG", &file);
    for (ended, used) in [
        (server().fails(), "file.pem"),
        (server().env("CREWCALL_TLS_CERT", "environment.pem").fails(), "environment.pem"),
        (
            server().env("CREWCALL_TLS_CERT", "environment.pem").args(["--tls-cert", "flag.pem"]).fails(),
            "flag.pem",
        ),
    ] {
        assert_eq!(ended.status.code(), Some(2));
        assert!(
            ended.stderr.contains(&format!("cannot read the TLS certificate {used}")),
            "{}",
            ended.stderr
        );
    }
    fs::write(&file, "tls_cret = 'x'\n").unwrap();
    let ended = server().fails();
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.stderr.contains("unknown key `tls_cret`"), "{}", ended.stderr);
}

#[test]
fn tls_serves_both_protocols() {
    let dir = tempfile::tempdir().unwrap();
    let identity = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    fs::write(&cert, identity.cert.pem()).unwrap();
    fs::write(&key, identity.signing_key.serialize_pem()).unwrap();
    let server = Server::builder().arg("--tls-cert").arg(&cert).arg("--tls-key").arg(&key).start();
    assert!(server.announcement[0].contains("listening on https://"), "{:?}", server.announcement);

    let mut http1 = tls_client(&server, identity.cert.der(), b"http/1.1");
    http1.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    http1.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("ok\n"), "{answer}");

    let mut http2 = Http2::over(tls_client(&server, identity.cert.der(), b"h2")).unwrap();
    http2.get(1, "/healthz").unwrap();
}

fn tls_client(
    server: &Server,
    cert: &CertificateDer<'static>,
    protocol: &[u8],
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(cert.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let mut connection =
        ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
    let mut socket = TcpStream::connect(server.address()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    connection.complete_io(&mut socket).unwrap();
    assert_eq!(connection.alpn_protocol(), Some(protocol));
    StreamOwned::new(connection, socket)
}

#[test]
fn bad_tls_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let one = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let cert = write("cert.pem", &one.cert.pem());
    let key = write("key.pem", &one.signing_key.serialize_pem());
    let other_key = write("other.pem", &other.signing_key.serialize_pem());
    let text = write("text.pem", "not PEM at all\n");
    let missing = dir.path().join("missing.pem");
    for (cert, key, says) in [
        (&missing, &key, "cannot read the TLS certificate"),
        (&cert, &missing, "cannot read the TLS key"),
        (&text, &key, "text.pem holds no TLS certificate in PEM form"),
        (&cert, &text, "text.pem holds no TLS key in PEM form"),
        (&key, &key, "key.pem holds no TLS certificate in PEM form"),
        (&cert, &other_key, "does not belong to the certificate"),
    ] {
        let ended = Server::builder().arg("--tls-cert").arg(cert).arg("--tls-key").arg(key).fails();
        assert_eq!(ended.status.code(), Some(2), "{says}: {}", ended.stderr);
        assert!(ended.stderr.contains(says), "{says}: {}", ended.stderr);
    }
    let half = Server::builder().arg("--tls-cert").arg(&cert).fails();
    assert_eq!(half.status.code(), Some(2));
    assert!(half.stderr.contains("tls_key is not"), "{}", half.stderr);
}
