//! What is said over a registered worker's socket, both ways.

use bytes::Bytes;
use crewcall::scheduler::{Assign, AttemptEnd};
use crewcall::task::{Payload, TaskError, TaskId};

use crate::legacy::{SEALED, json, json_of, quoted, spelled};

/// The server's one question.
pub(super) const PING: &str = "{\"type\":\"ping\"}\n";

/// A worker's answer to a task.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) id: TaskId,
    pub(super) end: AttemptEnd,
}

/// What a worker's message means: an answer, or nothing that needs one (pings, pongs, unknown types, tasks
/// that are no UUID). A message that cannot be read fails the task that it names, and only that.
pub(super) fn read(text: &Bytes) -> Option<Answer> {
    let value = match json::first_value(text) {
        Ok(value) => value,
        Err(error) => {
            tracing::debug!(%error, "a worker's message cannot be read");
            let id = named_task(text)?;
            return Some(failed(id, format!("the worker's answer cannot be read: {error}")));
        }
    };
    let (mut kind, mut id, mut result, mut error) = (None, None, None, None);
    for (name, value) in json::members(value) {
        match () {
            () if name.eq_ignore_ascii_case("type") => kind = json::text(value),
            () if name.eq_ignore_ascii_case("taskId") => id = json::text(value),
            () if name.eq_ignore_ascii_case("result") => result = Some(value),
            () if name.eq_ignore_ascii_case("error") => error = Some(value),
            () => {}
        }
    }
    if kind.as_deref() != Some("result") {
        return None;
    }
    let id = id?.parse().ok()?;
    match error.map(|error| (json::kind(error), json::string(error))) {
        None | Some(("null", _)) => {}
        Some((_, Some(message))) if message.is_empty() => {}
        Some((_, Some(message))) => return Some(failed(id, message)),
        // Not what the protocol says, but a failure without doubt: its text is all there is to tell.
        Some((_, None)) => {
            let error = json::compact(text, error.unwrap_or_default());
            return Some(failed(id, String::from_utf8_lossy(&error).into_owned()));
        }
    }
    let data = result.map_or(Bytes::from_static(b"null"), |result| json::compact(text, result));
    Some(Answer { id, end: AttemptEnd::Succeeded(Payload::json(data)) })
}

fn failed(id: TaskId, message: String) -> Answer {
    let error = TaskError::new(TaskError::HANDLER_ERROR, message);
    Answer { id, end: AttemptEnd::Failed { error, retryable: None, retry_after_ms: 0 } }
}

/// The task in a text that is not JSON as a whole, as when a Python worker answers with NaN.
fn named_task(text: &[u8]) -> Option<TaskId> {
    const NAME: &[u8] = b"\"taskId\"";
    let at = text.windows(NAME.len()).position(|window| window == NAME)?;
    let rest = text.get(at + NAME.len()..)?.trim_ascii_start().strip_prefix(b":")?;
    json::string(json::first_value(rest).ok()?)?.parse().ok()
}

/// The message that gives a task to a worker.
///
/// # Errors
/// When the payload is nothing that the protocol can carry.
pub(super) fn task(assign: &Assign) -> Result<String, String> {
    let mut out = Vec::with_capacity(assign.payload.data.len() + assign.method.len() + 96);
    let kind = if assign.payload.content_type == SEALED {
        let sealed = json_of(&assign.payload)?;
        let field = |wanted: &str| {
            let value = json::members(&sealed).find(|(name, _)| name == wanted).map(|(_, value)| value);
            value.unwrap_or(b"\"\"").to_vec()
        };
        out.extend_from_slice(b"{\"crypto\":");
        out.extend_from_slice(&field("crypto"));
        out.extend_from_slice(b",\"key\":");
        out.extend_from_slice(&field("key"));
        out.extend_from_slice(b",\"method\":");
        out.extend_from_slice(&quoted(&assign.method));
        out.extend_from_slice(b",\"params\":");
        out.extend_from_slice(&field("params"));
        "encrypted_task"
    } else {
        out.extend_from_slice(b"{\"method\":");
        out.extend_from_slice(&quoted(&assign.method));
        out.extend_from_slice(b",\"params\":");
        out.extend_from_slice(&json_of(&assign.payload)?);
        "task"
    };
    for part in [",\"taskId\":\"", spelled(assign.id, &mut [0; 36]), "\",\"type\":\"", kind, "\"}\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    String::from_utf8(out).map_err(|_| "the payload is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use crewcall::clock::Timestamp;
    use crewcall::task::TaskOptions;

    use super::*;

    const ID: &str = "0190a1b2-c3d4-7e5f-8a6b-0123456789ab";

    fn outcome(text: &str) -> Option<Result<String, String>> {
        let answer = read(&Bytes::from(text.replace("ID", ID)))?;
        assert_eq!(answer.id.to_string(), ID);
        Some(match answer.end {
            AttemptEnd::Succeeded(payload) => Ok(String::from_utf8(payload.data.to_vec()).unwrap()),
            AttemptEnd::Failed { error, .. } => Err(error.message),
        })
    }

    #[test]
    fn answers_are_read_as_the_original_reads_them() {
        for (text, result) in [
            (
                r#"{"type":"result","taskId":"ID","result": { "z" : 1.0 , "a" : "<" }}"#,
                r#"{"z":1.0,"a":"\u003c"}"#,
            ),
            (r#"{"type":"result","taskId":"ID"}"#, "null"),
            (r#"{"type":"result","taskId":"ID","error":"","result":5}"#, "5"),
            (r#"{"type":"result","taskId":"ID","error":null,"result":1e400} xx"#, "1e400"),
            (r#"{"type": "result", "taskId": "ID", "status": "error", "result": 7}"#, "7"),
        ] {
            assert_eq!(outcome(text), Some(Ok(result.to_owned())), "{text}");
        }
        for (text, error) in [
            (r#"{"type":"result","taskId":"ID","result":5,"error":"e"}"#, "e"),
            (r#"{"type":"result","taskId":"ID","error":{ "code" : 1 }}"#, r#"{"code":1}"#),
        ] {
            assert_eq!(outcome(text), Some(Err(error.to_owned())), "{text}");
        }
        for nothing in [
            r#"{"type":"pong"}"#,
            r#"{"type":"ping"}"#,
            r#"{"type":"encrypted_result","taskId":"ID","result":"x"}"#,
            r#"{"x":1}"#,
            "{}",
            "[1]",
            "5",
            "",
            r#"{"type":"result","taskId":5,"result":1}"#,
            r#"{"type":"result","taskId":"no-such-task","result":1}"#,
            "not json",
        ] {
            assert_eq!(outcome(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn an_unreadable_answer_fails_the_task_that_it_names() {
        for (text, why) in [
            (r#"{"type": "result", "taskId": "ID", "result": NaN}"#, "invalid character 'N' looking for"),
            (r#"{"type":"result","result":Infinity,"taskId":"ID"}"#, "invalid character 'I'"),
            (r#"{"type":"result","taskId" : "ID","result":"cut"#, "unexpected EOF"),
        ] {
            let error = outcome(text).unwrap().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert_eq!(outcome(r#"{"taskId":NaN,"x":"#), None);
        assert_eq!(outcome(r#"{"taskId""#), None);
    }

    fn assign(payload: Payload) -> Assign {
        Assign {
            id: ID.parse().unwrap(),
            lease: 1,
            attempt: 1,
            method: "add<1>".into(),
            version: "".into(),
            payload,
            deadline: Timestamp::NEVER,
            options: TaskOptions::shared_call().into(),
            pool: "".into(),
        }
    }

    #[test]
    fn tasks_are_written_byte_for_byte_as_the_original_writes_them() {
        let plain =
            task(&assign(Payload::json("{ \"b\": 9007199254740993, \"a\": \"&\u{2028}\" }"))).unwrap();
        assert_eq!(
            plain,
            format!(
                "{{\"method\":\"add\\u003c1\\u003e\",\"params\":{{\"b\":9007199254740993,\"a\":\"\\u0026\\u2028\"}},\"taskId\":\"{ID}\",\"type\":\"task\"}}\n"
            )
        );
        let data = r#"{"crypto":"1","key":"K","params":"P"}"#.into();
        let sealed = task(&assign(Payload { data, content_type: SEALED.to_owned() })).unwrap();
        assert_eq!(
            sealed,
            format!(
                "{{\"crypto\":\"1\",\"key\":\"K\",\"method\":\"add\\u003c1\\u003e\",\"params\":\"P\",\"taskId\":\"{ID}\",\"type\":\"encrypted_task\"}}\n"
            )
        );
        let empty = task(&assign(Payload::default())).unwrap();
        assert!(empty.contains("\"params\":null,"), "{empty}");
    }

    #[test]
    fn what_json_cannot_carry_is_refused() {
        let image = Payload { data: Bytes::from_static(b"GIF89a"), content_type: "image/gif".to_owned() };
        assert!(task(&assign(image)).unwrap_err().contains("image/gif"));
        assert!(task(&assign(Payload::json("{"))).unwrap_err().contains("unexpected EOF"));
    }
}
