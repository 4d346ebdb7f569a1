//! Bodies of legacy requests, read as Go's `encoding/json` reads them: names of fields in any case, the
//! last of several wins, unknown ones are ignored, `null` leaves a field as it is.

use std::borrow::Cow;

use bytes::Bytes;

use super::{crypto, json, quoted};

/// A call in clear.
#[derive(Debug)]
pub(crate) struct Execute {
    pub(crate) method: String,
    /// One JSON value.
    pub(crate) params: Bytes,
}

/// A call whose parameters are sealed.
#[derive(Debug)]
pub(crate) struct Encrypted {
    pub(crate) method: String,
    params: String,
    key: String,
    crypto: String,
}

impl Encrypted {
    /// The caller's key and the parameters, a JSON value; `None` when they were not sealed as they should.
    pub(crate) fn open(&self) -> Option<(String, Bytes)> {
        let secret = String::from_utf8(crypto::open(&self.key, &self.crypto)?).ok()?;
        let plain = Bytes::from(crypto::open(&self.params, &secret)?);
        let value = json::first_value(&plain).ok()?;
        let params = json::compact(&plain, value);
        Some((secret, params))
    }

    /// As it goes to a worker, in the order of its message.
    pub(crate) fn sealed(&self) -> Bytes {
        let mut out = Vec::new();
        for (name, value) in
            [("{\"crypto\":", &self.crypto), (",\"key\":", &self.key), (",\"params\":", &self.params)]
        {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(&quoted(value));
        }
        out.push(b'}');
        out.into()
    }
}

/// The body of `/api/execute`.
///
/// # Errors
/// The text for the caller.
pub(crate) fn execute(body: &Bytes) -> Result<Execute, String> {
    const GO_TYPE: &str =
        "struct { Method string \"json:\\\"method\\\"\"; Params json.RawMessage \"json:\\\"params\\\"\" }";
    let mut request = Execute { method: String::new(), params: Bytes::from_static(b"null") };
    let mut fields = Fields::new("");
    for (name, value) in object(body, GO_TYPE)? {
        if name.eq_ignore_ascii_case("method") {
            fields.text("method", value, &mut request.method);
        } else if name.eq_ignore_ascii_case("params") {
            request.params = json::compact(body, value);
        }
    }
    fields.done(request)
}

/// The body of `/api/encrypted/execute`.
///
/// # Errors
/// The text for the caller.
pub(crate) fn encrypted(body: &Bytes) -> Result<Encrypted, String> {
    let mut request =
        Encrypted { method: String::new(), params: String::new(), key: String::new(), crypto: String::new() };
    let mut fields = Fields::new("EncryptedRequest");
    for (name, value) in object(body, "EncryptedRequest")? {
        match name.to_ascii_lowercase().as_str() {
            "method" => fields.text("method", value, &mut request.method),
            "params" => fields.text("params", value, &mut request.params),
            "key" => fields.text("key", value, &mut request.key),
            "crypto" => fields.text("crypto", value, &mut request.crypto),
            _ => {}
        }
    }
    fields.done(request)
}

/// The body of `/api/execute-encrypted`: a call, and the caller's key.
///
/// # Errors
/// The text for the caller.
pub(crate) fn with_key(body: &Bytes) -> Result<(Execute, String), String> {
    let mut key = String::new();
    let mut fields = Fields::new("");
    for (name, value) in object(body, "struct")? {
        if name.eq_ignore_ascii_case("key") {
            fields.text("key", value, &mut key);
        }
    }
    fields.done(())?;
    Ok((execute(body)?, key))
}

/// The members of the object that `body` begins with; `null` has none.
fn object<'a>(
    body: &'a [u8],
    go_type: &str,
) -> Result<impl Iterator<Item = (Cow<'a, str>, &'a [u8])>, String> {
    let value = json::first_value(body).map_err(|error| error.to_string())?;
    match json::kind(value) {
        "object" | "null" => Ok(json::members(value)),
        kind => Err(format!("json: cannot unmarshal {kind} into Go value of type {go_type}")),
    }
}

/// Collects the first wrong field: Go reads on, and reports that one.
struct Fields {
    owner: &'static str,
    error: Option<String>,
}

impl Fields {
    fn new(owner: &'static str) -> Self {
        Self { owner, error: None }
    }

    fn text(&mut self, field: &str, value: &[u8], into: &mut String) {
        match (json::kind(value), json::string(value)) {
            ("null", _) => {}
            (_, Some(text)) => *into = text,
            (kind, None) => {
                self.error.get_or_insert_with(|| {
                    let owner = self.owner;
                    format!(
                        "json: cannot unmarshal {kind} into Go struct field {owner}.{field} of type string"
                    )
                });
            }
        }
    }

    fn done<T>(self, request: T) -> Result<T, String> {
        self.error.map_or(Ok(request), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<(String, String), String> {
        execute(&Bytes::copy_from_slice(body.as_bytes()))
            .map(|request| (request.method, String::from_utf8(request.params.to_vec()).unwrap()))
    }

    #[test]
    fn bodies_are_read_as_go_reads_them() {
        for (body, method, params) in [
            (r#"{"method":"a","params":{"x":1}}"#, "a", r#"{"x":1}"#),
            (r#" {"METHOD":"a","Params": [ 1 , 1e400 ]} trailing"#, "a", "[1,1e400]"),
            (r#"{"method":"x","params":9,"method":"a","params":{}}"#, "a", "{}"),
            (r#"{"method":"a","method":null}"#, "a", "null"),
            (r#"{"m\u0065thod":"\u65b9\ud83d\ude80\ud800"}"#, "方🚀\u{fffd}", "null"),
            ("null", "", "null"),
            ("{}", "", "null"),
        ] {
            assert_eq!(read(body), Ok((method.to_owned(), params.to_owned())), "{body}");
        }
    }

    #[test]
    fn errors_are_go_s() {
        for (body, error) in [
            ("", "EOF"),
            (" \n", "EOF"),
            (r#"{"method":"a""#, "unexpected EOF"),
            ("nope", "invalid character 'o' in literal null (expecting 'u')"),
            (r#"{"method":"a",}"#, "invalid character '}' looking for beginning of object key string"),
            ("\u{feff}{}", "invalid character 'ï' looking for beginning of value"),
            (r#"{"method":1}"#, "json: cannot unmarshal number into Go struct field .method of type string"),
            (
                "[]",
                "json: cannot unmarshal array into Go value of type struct { Method string \"json:\\\"method\\\"\"; \
                 Params json.RawMessage \"json:\\\"params\\\"\" }",
            ),
        ] {
            assert_eq!(read(body), Err(error.to_owned()), "{body}");
        }
        let body = Bytes::from_static(br#"{"method":"x","params":{},"key":"k","crypto":1}"#);
        assert_eq!(
            encrypted(&body).unwrap_err(),
            "json: cannot unmarshal object into Go struct field EncryptedRequest.params of type string"
        );
    }

    #[test]
    fn sealed_parameters_are_opened_with_the_salted_key_or_not_at_all() {
        let (secret, salt) = ("k-钥匙", "-7");
        let params = crypto::seal(b"{ \"a\": 1e400 }", secret).unwrap();
        let key = crypto::seal(secret.as_bytes(), salt).unwrap();
        let body =
            serde_json::json!({"method": "m", "params": params, "key": key, "crypto": salt}).to_string();
        let request = encrypted(&Bytes::from(body)).unwrap();
        assert_eq!(request.open(), Some((secret.to_owned(), Bytes::from_static(b"{\"a\":1e400}"))));

        let relayed =
            encrypted(&Bytes::from_static(br#"{"method":"m","params":"P<","key":"K","crypto":"1"}"#));
        let relayed = relayed.unwrap();
        assert_eq!(relayed.open(), None);
        assert_eq!(relayed.sealed(), r#"{"crypto":"1","key":"K","params":"P\u003c"}"#);
    }
}
