//! The description of REST v1 for machines. It is made from the handlers, checked in as `openapi.json` so that
//! a change of the public contract shows in a diff, and served at `GET /openapi.json`.

use std::sync::LazyLock;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;

static DOCUMENT: LazyLock<String> = LazyLock::new(text);

#[derive(OpenApi)]
#[openapi(
    info(
        title = "crewcall",
        description = "Call any function on any worker, in any language. Errors are application/problem+json with a stable `reason`.",
        license(name = "MIT OR Apache-2.0"),
    ),
    tags(
        (name = "tasks", description = "For callers."),
        (name = "workers", description = "For workers."),
        (name = "operators", description = "What is connected, what it serves, how it does."),
    ),
)]
struct Frame;

/// Everything but the routes.
pub(crate) fn frame() -> utoipa::openapi::OpenApi {
    Frame::openapi()
}

fn text() -> String {
    let mut text = crate::v1::documented_routes().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// The document.
pub(crate) async fn document() -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], DOCUMENT.as_str()).into_response()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn the_checked_in_document_is_the_one_that_is_served() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
        let text = super::text();
        if std::env::var_os("CREWCALL_BLESS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let known = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            known == text,
            "gateway/openapi.json is stale: run this test with CREWCALL_BLESS=1 and look at the diff"
        );
    }
}
