//! Keeps web pages of other sites from driving this server: a browser on the operator's machine can reach
//! it, even on 127.0.0.1, and carries their requests.
//!
//! | rule | against | answer |
//! |---|---|---|
//! | a browser must name a host that is an address, localhost, or allowed | DNS rebinding | 421 |
//! | a request that does something must come from this site or an allowed one | cross-site requests | 403 |
//!
//! SDKs, curl and other programs are no browsers: they send no `Origin`, or their own. Types of content say
//! nothing: SDKs and curl send any.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::legacy_worker::is_upgrade;
use crate::problem::Problem;

/// Refuses what a page of another site sends. `allowed` are origins such as `https://ops.example:8443`.
pub(crate) async fn guard(State(allowed): State<Arc<[String]>>, request: Request, next: Next) -> Response {
    let upgrade = is_upgrade(request.headers());
    let host = host(&request).unwrap_or_default().to_owned();
    match check(request.method(), &host, request.headers(), upgrade, &allowed) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.at(request.uri().path()),
    }
}

fn host(request: &Request) -> Option<&str> {
    let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    named.or_else(|| request.uri().authority().map(axum::http::uri::Authority::as_str))
}

fn check(
    method: &Method,
    host: &str,
    headers: &HeaderMap,
    upgrade: bool,
    allowed: &[String],
) -> Result<(), Problem> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let browser = is_browser(headers);
    if browser && !is_own_name(host) && !allowed.iter().any(|origin| authority(origin) == host) {
        let detail = format!(
            "this server is not known as {host:?}: open it by its address, or allow its origin (allowed_origins)"
        );
        return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "host_not_allowed", detail));
    }
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) && !upgrade {
        return Ok(());
    }
    let origin = text("origin");
    if origin.is_some_and(|origin| allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin))) {
        return Ok(());
    }
    // A page cannot make its browser leave these out, or lie in them. Python workers send an origin of
    // their own making, which may name a proxy: from a program it means nothing, so it is not looked at.
    let foreign_origin = origin.is_some_and(|origin| !authority(origin).eq_ignore_ascii_case(host));
    let foreign = match text("sec-fetch-site") {
        Some("cross-site" | "same-site") => true,
        _ => foreign_origin && (browser || !upgrade),
    };
    if foreign {
        let detail = format!(
            "requests from pages of {} are refused; to allow them, add the origin to allowed_origins",
            origin.unwrap_or("another site")
        );
        return Err(Problem::new(StatusCode::FORBIDDEN, "origin_not_allowed", detail));
    }
    Ok(())
}

/// Whether the request can only come from a program, which nothing here concerns.
pub(crate) fn is_of_program(headers: &HeaderMap) -> bool {
    !headers.contains_key(header::ORIGIN) && !is_browser(headers)
}

/// Browsers send at least one of these with everything, WebSocket handshakes included, and no page can
/// prevent it.
fn is_browser(headers: &HeaderMap) -> bool {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    agent.starts_with("Mozilla/") || headers.keys().any(|name| name.as_str().starts_with("sec-fetch-"))
}

/// Names that no stranger's DNS can point here.
fn is_own_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
}

fn authority(origin: &str) -> &str {
    origin.split_once("://").map_or(origin, |(_, authority)| authority)
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;

    use super::*;

    const HERE: &str = "127.0.0.1:8080";

    fn outcome(method: &Method, host: &str, upgrade: bool, lines: &[(&'static str, &str)]) -> u16 {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.insert(*name, value.parse().unwrap());
        }
        let allowed = ["https://ops.example".to_owned()];
        match check(method, host, &headers, upgrade, &allowed) {
            Ok(()) => 200,
            Err(problem) => problem.into_response().status().as_u16(),
        }
    }

    const BROWSER: (&str, &str) = ("user-agent", "Mozilla/5.0 (X11; Linux x86_64)");

    #[test]
    fn who_may_send_what() {
        let (get, post) = (&Method::GET, &Method::POST);
        let own = ("origin", "http://127.0.0.1:8080");
        let evil = ("origin", "http://evil.example");
        let cross = ("sec-fetch-site", "cross-site");
        type Case<'a> = (&'a Method, &'a str, bool, &'a [(&'static str, &'a str)], u16);
        let cases: &[Case<'_>] = &[
            // Programs.
            (post, HERE, false, &[], 200),
            (post, "scheduler.internal:8080", false, &[("user-agent", "axios/1.10")], 200),
            (get, HERE, true, &[own], 200),
            (get, HERE, true, &[evil], 200),
            (post, HERE, false, &[evil], 403),
            // The page of this server, and of an allowed one.
            (post, HERE, false, &[BROWSER, own, ("sec-fetch-site", "same-origin")], 200),
            (post, "localhost:8080", false, &[BROWSER, ("origin", "http://localhost:8080")], 200),
            (post, "[::1]:8080", false, &[BROWSER, ("origin", "http://[::1]:8080")], 200),
            (post, HERE, false, &[BROWSER, ("origin", "https://ops.example"), cross], 200),
            (get, "ops.example", false, &[BROWSER], 200),
            // A link from elsewhere.
            (get, HERE, false, &[BROWSER, cross], 200),
            // Pages of others.
            (post, HERE, false, &[BROWSER, evil], 403),
            (post, HERE, false, &[BROWSER, ("origin", "null")], 403),
            (
                post,
                HERE,
                false,
                &[BROWSER, ("origin", "http://127.0.0.1:9090"), ("sec-fetch-site", "same-site")],
                403,
            ),
            (post, HERE, false, &[cross], 403),
            (get, HERE, true, &[BROWSER, evil], 403),
            (get, HERE, true, &[("sec-fetch-mode", "websocket"), evil], 403),
            (&Method::DELETE, HERE, false, &[BROWSER, evil], 403),
            // A stranger's name for this address: the origin is the same, and that proves nothing.
            (post, "evil.example:8080", false, &[BROWSER, ("origin", "http://evil.example:8080")], 421),
            (get, "evil.example:8080", false, &[BROWSER], 421),
            (get, "127.0.0.1.evil.example", false, &[BROWSER], 421),
        ];
        for (method, host, upgrade, headers, expected) in cases {
            let got = outcome(method, host, *upgrade, headers);
            assert_eq!(got, *expected, "{method} at {host}, upgrade {upgrade}, {headers:?}");
        }
    }
}
