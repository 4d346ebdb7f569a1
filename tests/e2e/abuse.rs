//! Clients that attack, by flood or by sloth: they are closed, and nobody else notices.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use crate::{
    harness::{PATIENCE, Server},
    raw::{
        self, CONTINUATION, Closing, DATA, END_HEADERS, END_STREAM, HEADERS, Http2, PING, RST_STREAM,
        SETTINGS, frame, head,
    },
};

const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Sends the rounds of a flood on one connection until the server closes it, while two others, one older than
/// the attack and one new each time, are served.
fn flood(server: &Server, name: &str, opening: &[u8], round: impl Fn(u32) -> Vec<u8> + Send) -> Closing {
    let address = server.address();
    let mut bystander = Http2::open(address).unwrap();
    bystander.get(1, "/healthz").unwrap();

    let mut attacker = Http2::open(address).unwrap();
    attacker.send(opening).unwrap();
    let mut reader = attacker.reader().unwrap();
    let closing = thread::scope(|scope| {
        let closing = scope.spawn(move || reader.until_closed());
        let attack = scope.spawn(move || {
            // 2^16 rounds are some hundred megabytes: a server that takes them all has no guard.
            (0..1 << 16).any(|number| attacker.send(&round(number)).is_err())
        });
        let mut stream = 3;
        while !attack.is_finished() {
            bystander.get(stream, "/healthz").unwrap();
            stream += 2;
            assert!(raw::get(address, "/healthz").unwrap().starts_with("HTTP/1.1 200"), "{name}");
        }
        assert!(attack.join().unwrap(), "{name}: the server took everything");
        closing.join().unwrap()
    });
    bystander.get(1_000_001, "/healthz").unwrap();
    closing
}

#[test]
fn http2_floods_close_the_offender_only() {
    let server = Server::builder().args(["--log", "crewcall=debug"]).start();

    let closing = flood(&server, "rapid reset", &[], |round| {
        (0..200)
            .flat_map(|n| {
                let stream = (round * 200 + n) * 2 + 1;
                let mut bytes = frame(HEADERS, END_STREAM | END_HEADERS, stream, &head("GET", "/healthz"));
                bytes.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
                bytes
            })
            .collect()
    });
    assert_eq!(closing.goaway, Some(ENHANCE_YOUR_CALM), "rapid reset");

    let unfinished = frame(HEADERS, END_STREAM, 1, &head("GET", "/healthz"));
    let closing = flood(&server, "CONTINUATION", &unfinished, |_| frame(CONTINUATION, 0, 1, &[]).repeat(100));
    // h2 may read one more of them before its verdict is out, and then calls it out of place.
    assert!(matches!(closing.goaway, Some(PROTOCOL_ERROR | ENHANCE_YOUR_CALM)), "CONTINUATION: {closing:?}");

    let unfinished = frame(HEADERS, 0, 1, &head("GET", "/healthz"));
    let field = b"\x00\x01a\x7f\x81\x0e".iter().copied().chain([b'x'; 2000]).collect::<Vec<_>>();
    flood(&server, "huge head", &unfinished, |_| frame(CONTINUATION, 0, 1, &field));

    let open = frame(HEADERS, END_HEADERS, 1, &head("POST", "/healthz"));
    let closing = flood(&server, "empty DATA", &open, |_| frame(DATA, 0, 1, &[]).repeat(100));
    assert!(matches!(closing.goaway, None | Some(PROTOCOL_ERROR | ENHANCE_YOUR_CALM)), "{closing:?}");

    flood(&server, "PING", &[], |_| frame(PING, 0, 0, &[7; 8]).repeat(100));
    flood(&server, "PING answers", &[], |_| frame(PING, 1, 0, &[7; 8]).repeat(100));
    flood(&server, "SETTINGS", &[], |_| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]).repeat(100));
    flood(&server, "unknown frames", &[], |_| frame(0xbe, 0, 0, &[0; 50]).repeat(100));
    let log = server.log();
    assert_eq!(log.matches("HTTP/2 flood").count(), 4, "the last four have no guard but ours");
}

/// The server's deadlines in these tests. Long enough that a slow machine still serves the honest in between.
const DEADLINE: Duration = Duration::from_millis(700);
/// Less than any default deadline: what is closed within it was closed at ours.
const SOON: Duration = Duration::from_secs(8);

fn impatient() -> crate::harness::ServerBuilder {
    let mut server = Server::builder();
    for name in ["handshake", "header", "body", "keepalive"] {
        server = server.args([format!("--{name}-timeout"), humantime(DEADLINE)]);
    }
    server.args(["--keepalive-interval", "300ms"])
}

fn humantime(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

/// Opens many connections that all do the same, and sees each closed, not before its time, with others
/// served.
fn all_are_closed(server: &Server, name: &str, bytes: &[u8]) {
    let mut slow: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = raw::connect(server.address()).unwrap();
            stream.write_all(bytes).unwrap();
            stream
        })
        .collect();
    // Opened last, watched alone: were it closed early, it would be before this wait ends.
    let opened = Instant::now();
    let mut last = raw::connect(server.address()).unwrap();
    last.write_all(bytes).unwrap();
    assert!(!raw::closes_within(&mut last, DEADLINE / 3), "{name}: closed before the deadline");
    let served = thread::scope(|scope| {
        let waiting = scope.spawn(|| slow.iter_mut().all(|stream| raw::closes_within(stream, SOON)));
        let mut served = 0;
        while !waiting.is_finished() {
            served += usize::from(raw::get(server.address(), "/healthz").unwrap().ends_with("ok\n"));
        }
        assert!(waiting.join().unwrap(), "{name}: still open");
        served
    });
    assert!(raw::closes_within(&mut last, SOON), "{name}: still open");
    assert!(opened.elapsed() < SOON, "{name}: closed late");
    assert!(served > 0, "{name}: nobody else was served");
}

#[test]
fn slow_clients_are_closed_at_the_deadline() {
    let server = impatient().start();
    all_are_closed(&server, "silence", b"");
    all_are_closed(&server, "half an HTTP/2 preface", &raw::PREFACE[..12]);
    all_are_closed(&server, "half an HTTP/1 head", b"GET /healthz HTTP/1.1\r\nhost: local");
    all_are_closed(
        &server,
        "half an upgrade",
        b"GET /ws HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-ver",
    );
    all_are_closed(&server, "idle after a request", b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n");
    all_are_closed(&server, "a preface and no more", raw::PREFACE);
    let mut half_a_frame = raw::PREFACE.to_vec();
    half_a_frame.extend(frame(SETTINGS, 0, 0, &[]));
    half_a_frame.extend(&frame(HEADERS, END_HEADERS, 1, &head("GET", "/healthz"))[..12]);
    all_are_closed(&server, "half an HTTP/2 frame", &half_a_frame);
}

#[test]
fn a_head_that_drips_in_gains_no_time() {
    let server = impatient().start();
    let mut stream = raw::connect(server.address()).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let begun = Instant::now();
    // Each wait for the close is the pause between two bytes.
    while !raw::closes_within(&mut stream, DEADLINE / 20) {
        let _ = stream.write_all(b"a");
        assert!(begun.elapsed() < SOON, "still open");
    }
    assert!(begun.elapsed() >= DEADLINE / 2, "closed before the deadline");
}

#[test]
fn half_a_tls_handshake_is_closed_at_the_deadline() {
    let identity = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    fs::write(&cert, identity.cert.pem()).unwrap();
    fs::write(&key, identity.signing_key.serialize_pem()).unwrap();
    let server = impatient().arg("--tls-cert").arg(cert).arg("--tls-key").arg(key).start();
    // A record header that promises a ClientHello of 512 bytes, and its first four.
    for bytes in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"] {
        let opened = Instant::now();
        let mut stream = raw::connect(server.address()).unwrap();
        stream.write_all(bytes).unwrap();
        assert!(raw::closes_within(&mut stream, SOON));
        assert!(opened.elapsed() >= DEADLINE, "closed before the deadline");
    }
    // Plain HTTP on a TLS port is told so by the alert, at once.
    let mut plain = raw::connect(server.address()).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(raw::closes_within(&mut plain, PATIENCE));
}

#[test]
fn at_the_connection_limit_newcomers_wait_their_turn() {
    let server = Server::builder().args(["--max-connections", "3"]).start();
    let mut holders: Vec<_> = (0..3).map(|_| holder(server.address())).collect();
    let mut waiting = raw::connect(server.address()).unwrap();
    waiting.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    assert!(no_answer(&mut waiting), "served beyond the limit");
    for holder in &mut holders {
        holder.get(3, "/healthz").unwrap();
    }

    drop(holders.pop());
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("ok\n"), "{answer}");
}

#[test]
fn silent_connections_cannot_hold_the_limit() {
    let server = impatient().args(["--max-connections", "4"]).start();
    let begun = Instant::now();
    let silent: Vec<_> = (0..4).map(|_| raw::connect(server.address()).unwrap()).collect();
    let answer = raw::get(server.address(), "/healthz").unwrap();
    assert!(answer.ends_with("ok\n"), "{answer}");
    assert!(begun.elapsed() < SOON, "served late");
    drop(silent);
}

#[test]
fn one_address_has_its_share_only() {
    let server = Server::builder().args(["--max-connections-per-ip", "2"]).start();
    let first = holder(server.address());
    let mut second = holder(server.address());
    let mut third = raw::connect(server.address()).unwrap();
    assert!(raw::closes_within(&mut third, PATIENCE), "admitted beyond the share");
    second.get(3, "/healthz").unwrap();

    drop(first);
    // The server learns of the close in its own time; until then it refuses.
    let begun = Instant::now();
    while !raw::get(server.address(), "/healthz").is_ok_and(|answer| answer.ends_with("ok\n")) {
        assert!(begun.elapsed() < PATIENCE, "the place never came back");
    }
}

/// A connection that is certainly admitted: it was answered.
fn holder(address: SocketAddr) -> Http2<TcpStream> {
    let mut connection = Http2::open(address).unwrap();
    connection.get(1, "/healthz").unwrap();
    connection
}

fn no_answer(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    stream.read(&mut [0]).is_err_and(|error| raw::is_timeout(&error))
}
