//! The client's end of a WebSocket, as small as it gets.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::{BenchError, http1};

/// Allocated for each socket at once; thousands of them live in one process.
const BUFFER: usize = 4 << 10;

pub(crate) type Socket = WebSocketStream<TcpStream>;

/// Connects to a path of `http://HOST:PORT`, says `hello` and waits until the server has read it: it reads in
/// order, so it answers the ping behind it only then. What else it sends meanwhile is dropped.
///
/// # Errors
/// When there is no such server, or it closes.
pub(crate) async fn open(url: &str, path: &str, hello: String) -> Result<Socket, BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::failed(format!("WebSocket {path}"), error);
    let host = http1::host(url)?;
    let stream = TcpStream::connect(host).await?;
    stream.set_nodelay(true)?;
    let config = WebSocketConfig::default().read_buffer_size(BUFFER).write_buffer_size(BUFFER);
    let (mut socket, _) = client_async_with_config(format!("ws://{host}{path}"), stream, Some(config))
        .await
        .map_err(|error| failed(&error))?;
    socket.feed(Message::text(hello)).await.map_err(|error| failed(&error))?;
    socket.send(Message::Ping("hello".into())).await.map_err(|error| failed(&error))?;
    loop {
        match socket.next().await {
            Some(Ok(Message::Pong(_))) => return Ok(socket),
            Some(Ok(Message::Close(frame))) => return Err(failed(&format_args!("closed: {frame:?}"))),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(failed(&error)),
            None => return Err(failed(&"the server closed it")),
        }
    }
}
