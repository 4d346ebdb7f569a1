//! How this crate opens HTTP/2 connections, for callers and workers alike.
use std::time::Duration;

use tonic::transport::Endpoint;

/// Room for a list of outcomes; a single payload is at most 4 MiB by default.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Servers refuse clients that ping more often than every 10 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Accepts `http://host:port` and bare `host:port`; says what is wrong with anything else.
pub(crate) fn endpoint(address: &str) -> Result<Endpoint, String> {
    let address = address.trim();
    let authority = match address.split_once("://") {
        Some(("http", authority)) => authority,
        Some((scheme, _)) => {
            return Err(format!(
                "address `{address}`: scheme `{scheme}` is not supported, use http://host:port"
            ));
        }
        None => address,
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if authority.is_empty() || authority.contains(['/', '?', '#', '@']) {
        return Err(format!("address `{address}` is not of the form http://host:port"));
    }
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|error| format!("address `{address}` is not of the form http://host:port: {error}"))?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_addresses_with_and_without_scheme() {
        for address in ["127.0.0.1:8080", "http://localhost:8080", "http://localhost:8080/", "[::1]:9"] {
            assert!(endpoint(address).is_ok(), "{address}");
        }
    }

    #[test]
    fn says_what_is_wrong_with_an_address() {
        for address in ["ftp://x:1", "", "http://", "http:///", "a b", "http://host/path"] {
            let error = endpoint(address).unwrap_err();
            assert!(error.contains(&format!("`{address}`")) && error.contains("host:port"), "{error}");
        }
    }
}
