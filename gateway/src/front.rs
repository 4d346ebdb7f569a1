//! The way in. What callers ask for again and again goes straight to its handler; everything else, and whatever a
//! browser sends, goes through the router.
//!
//! The router serves these paths too, with the same answers: the handlers are the same functions. On its way
//! through it a request is given a copy of the path, of the variables and of the headers, and each layer clones and
//! boxes those below it, which together costs more than scheduling the call.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::Request;
use axum::http::Method;
use axum::response::Response;
use axum::routing::future::RouteFuture;
use futures_util::future::{BoxFuture, Either};
use tower::Service;

use crate::{Gateway, browser, legacy, v1};

/// The service in front of all routes: see [`Gateway::front`].
#[derive(Clone, Debug)]
pub struct Front {
    gateway: Gateway,
    routes: Router,
}

/// Requests that do not take the way through the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direct {
    Call,
    LegacyCall,
    LegacyResult,
}

impl Front {
    pub(crate) fn new(gateway: Gateway, routes: Router) -> Self {
        // State is resolved here, once, not for every request.
        Self { gateway, routes: routes.with_state(()) }
    }
}

impl Direct {
    fn of(request: &Request) -> Option<Self> {
        let path = request.uri().path();
        // One segment, and spelled as it is meant.
        let is_plain = |rest: &str| !rest.is_empty() && !rest.bytes().any(|byte| matches!(byte, b'/' | b'%'));
        let direct = match *request.method() {
            Method::POST if path.strip_prefix(v1::CALL_PATH).is_some_and(is_plain) => Self::Call,
            Method::POST if path == legacy::EXECUTE_PATH => Self::LegacyCall,
            Method::GET if path.strip_prefix(legacy::RESULT_PATH).is_some_and(is_plain) => Self::LegacyResult,
            _ => return None,
        };
        browser::is_of_program(request.headers()).then_some(direct)
    }
}

impl Service<Request> for Front {
    type Response = Response;
    type Error = Infallible;
    type Future = Either<BoxFuture<'static, Result<Response, Infallible>>, RouteFuture<Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let Some(direct) = Direct::of(&request) else { return Either::Right(self.routes.call(request)) };
        Either::Left(match direct {
            Direct::Call => {
                let edge = Arc::clone(&self.gateway.v1);
                Box::pin(async move { Ok(v1::answer_call(edge, request).await) })
            }
            Direct::LegacyCall => {
                let legacy = Arc::clone(&self.gateway.legacy);
                Box::pin(async move { Ok(legacy::answer_call(legacy, request).await) })
            }
            Direct::LegacyResult => {
                let legacy = Arc::clone(&self.gateway.legacy);
                Box::pin(async move { Ok(legacy::answer_result(legacy, request).await) })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn programs_go_straight_to_the_handlers_and_nobody_else_does() {
        use Direct::{Call, LegacyCall, LegacyResult};
        type Case<'a> = (&'a str, &'a str, &'a [(&'static str, &'a str)], Option<Direct>);
        let cases: &[Case<'_>] = &[
            ("POST", "/v1/call/add?wait=1s", &[("user-agent", "axios/1.10")], Some(Call)),
            ("POST", "/api/execute", &[], Some(LegacyCall)),
            ("GET", "/api/result/some-id", &[], Some(LegacyResult)),
            ("GET", "/v1/call/add", &[], None),
            ("GET", "/api/execute", &[], None),
            ("HEAD", "/api/result/some-id", &[], None),
            ("POST", "/v1/call/", &[], None),
            ("POST", "/v1/call/a%2Fb", &[], None),
            ("POST", "/v1/call/a/b", &[], None),
            ("GET", "/api/result/a/b", &[], None),
            ("POST", "//api/execute", &[], None),
            ("POST", "/api/execute", &[("origin", "null")], None),
            ("POST", "/api/execute", &[("sec-fetch-site", "cross-site")], None),
            ("POST", "/v1/call/add", &[("user-agent", "Mozilla/5.0")], None),
        ];
        for (method, path, headers, expected) in cases {
            let mut request = Request::builder().method(*method).uri(*path);
            for (name, value) in *headers {
                request = request.header(*name, *value);
            }
            let request = request.body(Body::empty()).unwrap();
            assert_eq!(Direct::of(&request), *expected, "{method} {path} {headers:?}");
        }
    }
}
