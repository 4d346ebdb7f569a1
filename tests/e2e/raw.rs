//! HTTP by hand, for what no client library would send.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::harness::PATIENCE;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0x0;
pub(crate) const HEADERS: u8 = 0x1;
pub(crate) const RST_STREAM: u8 = 0x3;
pub(crate) const SETTINGS: u8 = 0x4;
pub(crate) const PING: u8 = 0x6;
pub(crate) const GOAWAY: u8 = 0x7;
pub(crate) const CONTINUATION: u8 = 0x9;

pub(crate) const ACK: u8 = 0x1;
pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;

pub(crate) fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    // So that a test which waits for something that never comes fails, and says where.
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends bytes, and returns everything until the server closes.
pub(crate) fn exchange(address: SocketAddr, bytes: &[u8]) -> io::Result<String> {
    let mut stream = connect(address)?;
    stream.write_all(bytes)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// One GET over HTTP/1 on a connection of its own.
pub(crate) fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    exchange(
        address,
        format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes(),
    )
}

/// Whether the server closes within `limit`. Any byte that it sends first is dropped.
pub(crate) fn closes_within(stream: &mut TcpStream, limit: Duration) -> bool {
    stream.set_read_timeout(Some(limit)).unwrap();
    let mut bytes = [0; 1024];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return !is_timeout(&error),
        }
    }
}

pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A request head in HPACK, from the static table and literals only: it means the same in every connection.
pub(crate) fn head(method: &str, path: &str) -> Vec<u8> {
    let mut block = vec![if method == "POST" { 0x83 } else { 0x82 }, 0x86, 0x04];
    block.push(u8::try_from(path.len()).unwrap());
    block.extend(path.as_bytes());
    block.extend(b"\x01\x09localhost");
    block
}

/// One HTTP/2 connection.
#[derive(Debug)]
pub(crate) struct Http2<S> {
    pub(crate) stream: S,
    pub(crate) answer_pings: bool,
}

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// How a connection ended.
#[derive(Debug)]
pub(crate) struct Closing {
    /// The error code of the last GOAWAY.
    pub(crate) goaway: Option<u32>,
}

impl Http2<TcpStream> {
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        Self::over(connect(address)?)
    }

    /// A second handle on the same connection.
    pub(crate) fn reader(&self) -> io::Result<Self> {
        Ok(Self { stream: self.stream.try_clone()?, answer_pings: false })
    }
}

impl<S: Read + Write> Http2<S> {
    pub(crate) fn over(mut stream: S) -> io::Result<Self> {
        let mut hello = PREFACE.to_vec();
        hello.extend(frame(SETTINGS, 0, 0, &[]));
        stream.write_all(&hello)?;
        Ok(Self { stream, answer_pings: true })
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next frame; `None` once the server has closed. Answers SETTINGS, and PINGs unless told not to.
    pub(crate) fn next(&mut self) -> io::Result<Option<Frame>> {
        let mut header = [0; 9];
        match self.stream.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if is_timeout(&error) => return Err(error),
            // A reset is an end too: the server closes with our bytes unread.
            Err(_) => return Ok(None),
        }
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
        self.stream.read_exact(&mut payload)?;
        let acknowledge = match kind {
            SETTINGS => Some(&[][..]),
            PING if self.answer_pings => Some(&payload[..]),
            _ => None,
        };
        if let Some(payload) = acknowledge
            && flags & ACK == 0
        {
            // The server may have closed in between; the next read will tell.
            let _ = self.stream.write_all(&frame(kind, ACK, 0, payload));
        }
        Ok(Some(Frame { kind, flags, stream: u32::from_be_bytes([s0, s1, s2, s3]), payload }))
    }

    /// A GET that must be answered with 200.
    pub(crate) fn get(&mut self, stream: u32, path: &str) -> io::Result<()> {
        self.send(&frame(HEADERS, END_STREAM | END_HEADERS, stream, &head("GET", path)))?;
        let mut status = None;
        while let Some(frame) = self.next()? {
            if frame.stream != stream {
                continue;
            }
            if frame.kind == HEADERS {
                status = frame.payload.first().copied();
            }
            if frame.flags & END_STREAM != 0 {
                // Entry 8 of HPACK's static table is `:status: 200`.
                assert_eq!(status, Some(0x88), "{path}: not 200");
                return Ok(());
            }
        }
        Err(io::Error::new(ErrorKind::UnexpectedEof, format!("closed before {path} was answered")))
    }

    /// Reads until the server closes.
    pub(crate) fn until_closed(&mut self) -> Closing {
        let mut goaway = None;
        while let Some(frame) = self.next().expect("the server kept the connection open") {
            if frame.kind == GOAWAY {
                goaway = Some(u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()));
            }
        }
        Closing { goaway }
    }

    /// Reads until the server announces that it will close.
    pub(crate) fn until_goaway(&mut self) {
        while self.next().unwrap().expect("closed without GOAWAY").kind != GOAWAY {}
    }
}
