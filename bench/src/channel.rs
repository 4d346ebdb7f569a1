//! Bare connections, set as the SDK sets its own, so that bare and SDK differ in nothing else.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::BenchError;

/// Frames of many results.
pub(crate) const MESSAGE_BYTES: usize = 64 << 20;

/// An HTTP/2 connection of its own.
pub(crate) async fn connect(url: &str) -> Result<Channel, BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::failed("connection", format!("{url}: {error}"));
    Endpoint::from_shared(url.to_owned())
        .map_err(|error| failed(&error))?
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .connect()
        .await
        .map_err(|error| failed(&error))
}
