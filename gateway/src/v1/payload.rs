//! Payloads in JSON documents. One that is JSON stands in the document as it is, byte for byte, so that
//! `9007199254740993` and `1e400` survive; any other is an *envelope*, `{"base64": "...", "content_type": "..."}`.
//! A JSON payload that looks like an envelope is put into one, so that nothing is ambiguous.

use axum::http::{HeaderMap, header};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use crewcall::error::{Error, Result};
use crewcall::task::Payload;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

/// JSON nested deeper is not taken, and not shown as it is: the parsers of workers and callers recurse.
const MAX_DEPTH: usize = 10_000;

/// A payload that is not JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    base64: String,
    #[serde(borrow)]
    content_type: std::borrow::Cow<'a, str>,
}

/// A payload as a part of a JSON document. Nothing, with the type of JSON, is `null`.
pub(super) struct Embedded<'a>(pub(super) &'a Payload);

impl Serialize for Embedded<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Payload { data, content_type } = self.0;
        if is_json(content_type) {
            if data.is_empty() {
                return serializer.serialize_unit();
            }
            // A worker may call anything JSON.
            if let Ok(raw) = serde_json::from_slice::<&RawValue>(data)
                && envelope(raw.get()).is_none()
                && depth(raw.get().as_bytes()) <= MAX_DEPTH
            {
                return raw.serialize(serializer);
            }
        }
        let content_type = if content_type.is_empty() { JSON } else { content_type };
        Envelope { base64: STANDARD.encode(data), content_type: content_type.into() }.serialize(serializer)
    }
}

/// The media type that an empty one means.
pub(super) const JSON: &str = "application/json";

/// The payload that stands in `document` as `raw`. `what` names it in the error.
///
/// # Errors
/// `invalid_field`: an envelope whose base64 cannot be read, or JSON nested too deep.
pub(super) fn embedded(raw: Option<&RawValue>, document: &Bytes, what: &str) -> Result<Payload> {
    let Some(raw) = raw else { return Ok(Payload::default()) };
    let text = raw.get();
    if let Some(Envelope { base64, content_type }) = envelope(text) {
        let data =
            STANDARD.decode(base64).map_err(|problem| Error::invalid(&format!("{what}.base64"), problem))?;
        return Ok(Payload { data: data.into(), content_type: normal_type(&content_type) });
    }
    check_depth(text.as_bytes(), what)?;
    // A small part would keep the whole document in memory.
    let data = if text.len() >= document.len() / 2 {
        document.slice_ref(text.as_bytes())
    } else {
        Bytes::copy_from_slice(text.as_bytes())
    };
    Ok(Payload::json(data))
}

/// The payload that a request's whole body is.
///
/// # Errors
/// `invalid_field` for a content type that is no text; what is wrong with the JSON, as text.
pub(super) fn of_body(headers: &HeaderMap, body: Bytes) -> Result<Payload, BodyProblem> {
    let given = match headers.get(header::CONTENT_TYPE) {
        Some(value) => value
            .to_str()
            .map_err(|_| Error::invalid("content-type", "holds characters that no media type has"))?,
        None => "",
    };
    let content_type = normal_type(given);
    if is_json(&content_type) && !body.is_empty() {
        serde_json::from_slice::<&RawValue>(&body)
            .map_err(|problem| BodyProblem::Json(format!("the body is not valid JSON: {problem}")))?;
        check_depth(&body, "body")?;
    }
    Ok(Payload { data: body, content_type })
}

/// Why a body makes no payload.
#[derive(Debug)]
pub(super) enum BodyProblem {
    Field(Error),
    Json(String),
}

impl From<Error> for BodyProblem {
    fn from(error: Error) -> Self {
        Self::Field(error)
    }
}

/// Empty for plain JSON, so that the same call over gRPC and over HTTP has the same payload. A form is
/// what `curl -d` says when it is told nothing; no method takes forms.
fn normal_type(given: &str) -> String {
    let given = given.trim();
    let (essence, parameters) = match given.split_once(';') {
        Some((essence, parameters)) => (essence.trim_end(), parameters.trim()),
        None => (given, ""),
    };
    let json = essence.eq_ignore_ascii_case(JSON)
        && (parameters.is_empty() || parameters.eq_ignore_ascii_case("charset=utf-8"));
    if json || essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return String::new();
    }
    given.to_owned()
}

/// Whether a payload of this type is JSON.
fn is_json(content_type: &str) -> bool {
    if content_type.is_empty() {
        return true;
    }
    let essence = content_type.split(';').next().unwrap_or_default().trim_end().to_ascii_lowercase();
    essence.is_empty() || essence == JSON || essence.ends_with("+json")
}

fn envelope(text: &str) -> Option<Envelope<'_>> {
    // Ends at the first key that is none of an envelope's, so it costs nothing for other objects.
    text.starts_with('{').then(|| serde_json::from_str(text).ok()).flatten()
}

fn check_depth(text: &[u8], what: &str) -> Result<()> {
    let depth = depth(text);
    if depth <= MAX_DEPTH {
        return Ok(());
    }
    Err(Error::invalid(what, format_args!("is nested {depth} deep; at most {MAX_DEPTH}")))
}

/// How deep valid JSON is nested.
fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Keeps the difference between `null`, which is a payload, and nothing. For `deserialize_with`, beside
/// `default`.
pub(super) fn present<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(payload: &Payload) -> String {
        serde_json::to_string(&Embedded(payload)).unwrap()
    }

    fn read(text: &str) -> Payload {
        let document = Bytes::copy_from_slice(text.as_bytes());
        let raw: &RawValue = serde_json::from_slice(&document).unwrap();
        embedded(Some(raw), &document, "payload").unwrap()
    }

    #[test]
    fn json_stands_as_it_is_written_and_anything_else_in_an_envelope() {
        for text in ["9007199254740993", "1e400", "-0", r#"{"b":1,"a":{"b":1,"b":2}}"#, r#""\ud800""#, "null"]
        {
            let payload = read(text);
            assert_eq!((payload.data.as_ref(), payload.content_type.as_str()), (text.as_bytes(), ""));
            assert_eq!(shown(&payload), text);
        }
        let bytes = Payload { data: Bytes::from_static(b"\x00\xff"), content_type: "image/png".into() };
        assert_eq!(shown(&bytes), r#"{"base64":"AP8=","content_type":"image/png"}"#);
        assert_eq!(read(&shown(&bytes)), bytes);
        assert_eq!(shown(&Payload::default()), "null");
        // What a worker calls JSON and is none.
        assert_eq!(
            shown(&Payload::json("oops")),
            r#"{"base64":"b29wcw==","content_type":"application/json"}"#
        );
        // Extra keys, or one missing: an object like any other.
        for text in [
            r#"{"base64":"AP8="}"#,
            r#"{"base64":"AP8=","content_type":"x","more":1}"#,
            r#"{"base64":1,"content_type":"x"}"#,
        ] {
            assert_eq!(read(text), Payload::json(text.to_owned()));
        }
    }

    #[test]
    fn a_payload_that_looks_like_an_envelope_survives() {
        for text in
            [r#"{"base64":"AP8=","content_type":"image/png"}"#, r#"{"content_type":"x","b\u0061se64":""}"#]
        {
            let payload = Payload::json(text.to_owned());
            assert_ne!(shown(&payload), text);
            assert_eq!(read(&shown(&payload)), payload);
        }
    }

    #[test]
    fn an_envelope_that_cannot_be_read_is_refused() {
        let document = Bytes::from_static(br#"{"base64":"?","content_type":"x"}"#);
        let raw: &RawValue = serde_json::from_slice(&document).unwrap();
        let error = embedded(Some(raw), &document, "payload").unwrap_err();
        assert!(error.message.starts_with("payload.base64: "), "{error}");
    }

    #[test]
    fn depth_is_counted_outside_of_strings_and_never_recursed_into() {
        for (text, expected) in [("1", 0), ("[]", 1), (r#"["[[[",{"\"[":"\\"}]"#, 2), ("[[],[[]]]", 3)] {
            assert_eq!(depth(text.as_bytes()), expected, "{text}");
        }
        let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        let headers = HeaderMap::new();
        assert!(of_body(&headers, deep(MAX_DEPTH).into()).is_ok());
        let error = of_body(&headers, deep(1_000_000).into()).unwrap_err();
        assert!(
            matches!(error, BodyProblem::Field(ref error) if error.message.contains("1000000 deep")),
            "{error:?}"
        );
        // From a gRPC worker, which nobody checks.
        assert!(shown(&Payload::json(deep(1_000_000))).starts_with(r#"{"base64":"#));
    }

    #[test]
    fn types_of_bodies() {
        let of = |given: &str| {
            let mut headers = HeaderMap::new();
            if !given.is_empty() {
                headers.insert(header::CONTENT_TYPE, given.parse().unwrap());
            }
            of_body(&headers, Bytes::from_static(b"?")).map(|payload| payload.content_type).ok()
        };
        for json in
            ["", "application/json", "Application/JSON; charset=UTF-8", "application/x-www-form-urlencoded"]
        {
            assert_eq!(of(json), None, "{json}: must be JSON");
            assert_eq!(normal_type(json), "");
        }
        assert_eq!(of("application/problem+json"), None);
        assert_eq!(of("application/json; charset=utf-16"), None);
        assert_eq!(of("text/plain; charset=utf-8").as_deref(), Some("text/plain; charset=utf-8"));
    }
}
