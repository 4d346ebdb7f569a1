//! Bodies of requests.

use axum::body::{Body, to_bytes};
use bytes::Bytes;

/// A body of up to so many bytes may lie in a buffer that is many times as large: connections read into 8 KiB and
/// more.
const SMALL: usize = 16 << 10;

/// The whole body, by itself: a part of the buffer that it was read into would keep all of that in memory, for as
/// long as the task is kept.
///
/// # Errors
/// When it is longer than `most`, or breaks off.
pub(crate) async fn read(body: Body, most: usize) -> Result<Bytes, axum::Error> {
    let bytes = to_bytes(body, most).await?;
    Ok(if bytes.len() <= SMALL { Bytes::copy_from_slice(&bytes) } else { bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_small_body_keeps_nothing_else_in_memory() {
        let buffer = Bytes::from(vec![b'1'; 64 << 10]);
        let small = read(Body::from(buffer.slice(..50)), 100).await.unwrap();
        assert!(small == buffer.slice(..50) && small.is_unique());
        let large = read(Body::from(buffer.slice(..SMALL + 1)), buffer.len()).await.unwrap();
        assert!(large.len() == SMALL + 1 && !large.is_unique(), "not worth a copy");
        assert!(read(Body::from(buffer), 100).await.is_err());
    }
}
