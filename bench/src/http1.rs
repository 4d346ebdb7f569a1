//! A lean HTTP/1.1 client: one connection, kept alive, one request at a time. It costs a fraction of what the
//! servers do, so that the machine's processors are theirs.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::BenchError;

/// Answers here are small.
const BUFFER: usize = 4 << 10;
const MAX_HEADERS: usize = 32;

/// A connection to one server.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    host: String,
    request: Vec<u8>,
    /// What was read and not yet handed out.
    read: BytesMut,
}

/// The answer to one request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Of a refusal, in seconds.
    pub(crate) retry_after: Option<u64>,
    pub(crate) body: Bytes,
}

impl Connection {
    /// Connects to `http://HOST:PORT`.
    ///
    /// # Errors
    /// When nothing listens there.
    pub(crate) async fn open(url: &str) -> Result<Self, BenchError> {
        let host = host(url)?.to_owned();
        let stream = TcpStream::connect(&host).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, host, request: Vec::new(), read: BytesMut::with_capacity(BUFFER) })
    }

    /// Sends JSON and waits for the answer.
    ///
    /// # Errors
    /// When the connection breaks, or the answer is none that this client can read.
    pub(crate) async fn post(&mut self, path: &str, body: &[u8]) -> Result<Answer, BenchError> {
        self.request.clear();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        self.request.extend_from_slice(head.as_bytes());
        self.request.extend_from_slice(body);
        self.exchange().await
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// As [`post`](Self::post).
    pub(crate) async fn get(&mut self, path: &str) -> Result<Answer, BenchError> {
        self.request.clear();
        let head = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.host);
        self.request.extend_from_slice(head.as_bytes());
        self.exchange().await
    }

    async fn exchange(&mut self) -> Result<Answer, BenchError> {
        self.stream.write_all(&self.request).await?;
        loop {
            if let Some(answer) = self.take_answer()? {
                return Ok(answer);
            }
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    /// The answer, once all of it is there.
    fn take_answer(&mut self) -> Result<Option<Answer>, BenchError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let unreadable = |why: &dyn std::fmt::Display| BenchError::failed("HTTP answer", why);
        let head = match response.parse(&self.read).map_err(|error| unreadable(&error))? {
            httparse::Status::Complete(head) => head,
            httparse::Status::Partial => return Ok(None),
        };
        let status = response.code.unwrap_or(0);
        let number = |name: &str| {
            let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(header.value).ok()?.parse::<u64>().ok()
        };
        let length = number("content-length").and_then(|length| usize::try_from(length).ok());
        let length = length.ok_or_else(|| unreadable(&"it does not say how long it is"))?;
        let retry_after = if status >= 400 { number("retry-after") } else { None };
        if self.read.len() < head + length {
            return Ok(None);
        }
        self.read.advance(head);
        let body = self.read.split_to(length).freeze();
        // Gives the room of what was handed out back, once nobody holds it any more.
        self.read.reserve(BUFFER);
        Ok(Some(Answer { status, retry_after, body }))
    }
}

/// `HOST:PORT` of `http://HOST:PORT`.
///
/// # Errors
/// When it is something else.
pub(crate) fn host(url: &str) -> Result<&str, BenchError> {
    let host = url.strip_prefix("http://").map(|host| host.trim_end_matches('/'));
    host.ok_or_else(|| BenchError::Usage(format!("`{url}` is not of the form http://HOST:PORT")))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A server that gives these pieces one by one, each as soon as the one before is sent.
    async fn answers(pieces: &[&str]) -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let pieces: Vec<String> = pieces.iter().map(|piece| (*piece).to_owned()).collect();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            for piece in pieces {
                stream.write_all(piece.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        Connection::open(&url).await.unwrap()
    }

    #[tokio::test]
    async fn an_answer_may_come_in_pieces() {
        let mut connection = answers(&[
            "HTTP/1.1 200 OK\r\nContent-",
            "Length: 5\r\n\r\n80",
            "235HTTP/1.1 429 Too Many Requests\r\nRetry-After: 2\r\ncontent-length: 0\r\n\r\n",
        ])
        .await;
        let answer = connection.post("/v1/call/add", b"{}").await.unwrap();
        assert_eq!(answer, Answer { status: 200, retry_after: None, body: Bytes::from_static(b"80235") });
        let answer = connection.get("/").await.unwrap();
        assert_eq!(answer, Answer { status: 429, retry_after: Some(2), body: Bytes::new() });
        assert!(connection.get("/").await.is_err(), "the server has gone");
    }

    #[tokio::test]
    async fn an_answer_without_a_length_is_refused() {
        let mut connection = answers(&["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"]).await;
        let error = connection.get("/").await.unwrap_err().to_string();
        assert!(error.contains("how long"), "{error}");
    }

    #[test]
    fn only_plain_urls_are_taken() {
        assert_eq!(host("http://127.0.0.1:80/").unwrap(), "127.0.0.1:80");
        assert!(host("https://127.0.0.1:80").is_err());
    }
}
