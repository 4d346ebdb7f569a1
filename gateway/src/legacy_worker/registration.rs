//! A legacy worker's first message: who it is and what it serves.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;

use crewcall::scheduler::{Hello, Limits, PoolSpec};
use crewcall::task::{Method, check_method_name};
use semver::Version;

use crate::legacy::{json, quoted};

/// How many tasks a legacy worker counts as fit to run at once. It does not bound what it is given (its
/// credit does, and the protocol knows no such bound); it is the measure of its load beside workers that
/// do say how much they can take.
const CONCURRENCY: u32 = 16;
/// Longest texts of a hello.
const NAME_BYTES: usize = 128;
const SUMMARY_BYTES: usize = 256;

/// What a worker said of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Registration {
    pub(super) group: String,
    /// In its order, duplicates included: name and docs.
    pub(super) methods: Vec<(String, Vec<String>)>,
}

impl Registration {
    /// Reads the message.
    ///
    /// # Errors
    /// What is wrong with it, for the worker's author.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let value = json::first_value(text).map_err(|error| format!("registration: {error}"))?;
        let mut registration = Self { group: String::new(), methods: Vec::new() };
        match json::kind(value) {
            "object" | "null" => {}
            kind => return Err(format!("registration: an object is expected, not {kind}")),
        }
        for (name, value) in json::members(value) {
            if name.eq_ignore_ascii_case("group") {
                match (json::kind(value), json::string(value)) {
                    ("null", _) => {}
                    (_, Some(group)) => registration.group = group,
                    (kind, None) => return Err(format!("registration: group must be a string, not {kind}")),
                }
            } else if name.eq_ignore_ascii_case("methods") {
                registration.methods = methods(value)?;
            }
        }
        Ok(registration)
    }

    /// The same for the scheduler. Names that no task can have are left out: nobody could call them.
    pub(super) fn hello(&self, worker_id: String, sdk: &str, peer: &str, limits: &Limits) -> Hello {
        let mut seen = HashSet::new();
        let methods = self
            .methods
            .iter()
            .filter(|(name, _)| check_method_name(name).is_ok() && seen.insert(name.as_str()));
        let mut methods: Vec<Method> = methods.map(|(name, docs)| method(name, docs, limits)).collect();
        // The session keeps it.
        methods.shrink_to_fit();
        Hello {
            protocol: (1, 1),
            worker_id,
            group: tidy(&self.group, NAME_BYTES),
            sdk: sdk.to_owned(),
            peer: peer.to_owned(),
            pools: vec![PoolSpec {
                name: String::new(),
                concurrency: CONCURRENCY.min(limits.credit_per_pool),
            }],
            methods,
            starts_on_receipt: true,
            ..Hello::default()
        }
    }

    /// The methods as the status page shows them.
    pub(super) fn methods_json(&self) -> String {
        let text = |text: &str| String::from_utf8(quoted(text)).unwrap_or_default();
        let mut out = String::from("[");
        for (name, docs) in &self.methods {
            if out.len() > 1 {
                out.push(',');
            }
            let docs: Vec<String> = docs.iter().map(|line| text(line)).collect();
            // Writing to a String cannot fail.
            let _ = write!(out, "{{\"name\":{},\"docs\":[{}]}}", text(name), docs.join(","));
        }
        out.push(']');
        out
    }
}

/// An array of objects; entries without a name, docs that are no strings, are dropped.
fn methods(value: &[u8]) -> Result<Vec<(String, Vec<String>)>, String> {
    match json::kind(value) {
        "array" => {}
        "null" => return Ok(Vec::new()),
        kind => return Err(format!("registration: methods must be an array, not {kind}")),
    }
    let mut methods = Vec::new();
    for entry in json::elements(value) {
        match json::kind(entry) {
            "object" | "null" => {}
            kind => return Err(format!("registration: each method must be an object, not {kind}")),
        }
        let (mut name, mut docs) = (None, Vec::new());
        for (field, value) in json::members(entry) {
            match &*field {
                "name" => name = json::string(value),
                "docs" => docs = json::elements(value).filter_map(json::string).collect(),
                _ => {}
            }
        }
        methods.extend(name.map(|name| (name, docs)));
    }
    Ok(methods)
}

fn method(name: &str, docs: &[String], limits: &Limits) -> Method {
    let mut text = docs.join("\n\n");
    text.truncate(text.floor_char_boundary(limits.docs_bytes));
    Method {
        name: Arc::from(name),
        version: Version::new(0, 0, 0),
        version_text: String::new(),
        summary: docs.first().map(|line| tidy(line, SUMMARY_BYTES)).unwrap_or_default(),
        docs: text,
        input_schema: String::new(),
        output_schema: String::new(),
        examples: Vec::new(),
        pool: String::new(),
    }
}

/// Without control characters, at most so long.
fn tidy(text: &str, bytes: usize) -> String {
    let mut text = text.replace(char::is_control, " ");
    text.truncate(text.floor_char_boundary(bytes));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn methods_of(text: &str) -> String {
        Registration::parse(text.as_bytes()).unwrap().methods_json()
    }

    #[test]
    fn what_can_be_read_is_kept_in_its_order() {
        for (methods, shown) in [
            ("null", "[]"),
            ("[]", "[]"),
            (
                r#"[{"name":"z","docs":["d1","d2"]},{"name":"a"},{"name":"z"}]"#,
                r#"[{"name":"z","docs":["d1","d2"]},{"name":"a","docs":[]},{"name":"z","docs":[]}]"#,
            ),
            (
                r#"[{"name":"a","docs":"text"},{"name":5},{"docs":[]},null,{"name":"b","docs":["x",5,null,"y"]}]"#,
                r#"[{"name":"a","docs":[]},{"name":"b","docs":["x","y"]}]"#,
            ),
            (r#"[{"name":"方法","docs":["<b>"]}]"#, r#"[{"name":"方法","docs":["\u003cb\u003e"]}]"#),
        ] {
            assert_eq!(methods_of(&format!(r#"{{"Group":"g","methods":{methods}}}"#)), shown);
        }
        assert_eq!(methods_of(r#"{"group":"g"}"#), "[]");
        assert_eq!(methods_of("null"), "[]");
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        for (text, why) in [
            ("hello", "invalid character 'h'"),
            (r#"{"methods":["add"]}"#, "each method must be an object, not string"),
            (r#"{"methods":{"add":1}}"#, "methods must be an array, not object"),
            (r#"{"group":5}"#, "group must be a string, not number"),
            ("[]", "an object is expected, not array"),
            ("", "EOF"),
        ] {
            let error = Registration::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn the_hello_is_one_that_the_scheduler_takes() {
        let text = r#"{"group":"a\u0000b","methods":[{"name":""},{"name":" x"},{"name":"add","docs":["one\ntwo","three"]},{"name":"add"}]}"#;
        let registration = Registration::parse(text.as_bytes()).unwrap();
        let limits = Limits { docs_bytes: 10, credit_per_pool: 8, ..Limits::default() };
        let hello = registration.hello("w".to_owned(), "sdk", "127.0.0.1", &limits);
        assert_eq!(hello.group, "a b");
        assert_eq!(hello.pools.first().unwrap().concurrency, 8);
        let [method] = hello.methods.as_slice() else { panic!("{:?}", hello.methods) };
        assert_eq!((&*method.name, &*method.summary, &*method.docs), ("add", "one two", "one\ntwo\n\nt"));
    }
}
