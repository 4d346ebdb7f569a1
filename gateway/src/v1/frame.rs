//! The messages of a worker's WebSocket: `SessionRequest` and `SessionResponse` of
//! `proto/crewcall/v1/worker.proto` as JSON objects, one a message.

use serde::{Deserialize, Serialize};

mod request;
mod response;

pub(super) use request::{Said, Unreadable, read};
pub(super) use response::{ending, messages, refusals, welcome};

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct BeatDto {
    #[serde(default)]
    in_flight: u32,
    #[serde(default)]
    digest: u64,
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use crewcall::engine::SessionItem;
    use crewcall::error::Reason;
    use crewcall::scheduler::{AttemptEnd, Limits, Tell};

    use super::response::MESSAGE_BYTES;
    use super::*;

    fn said(text: &str) -> Result<Said, Unreadable> {
        read(&Bytes::copy_from_slice(text.as_bytes()), "peer", &Limits::default())
    }

    #[test]
    fn a_message_may_say_everything_at_once() {
        let said = said(
            r#"{"credits":[{"total":2},{"pool":"p","total":1}],"started":[{"lease":1}],
                "progress":[{"lease":1,"progress":{"current":1,"total":2,"message":"m"}}],
                "chunks":[{"lease":1,"data":{"n":9007199254740993}}],
                "results":[{"lease":1,"seq":1,"succeeded":1e400},{"lease":2,"seq":2,"succeeded":null},
                    {"lease":3,"seq":3,"failed":{"error":{"code":"c","message":"m","details":[1]},"retryable":false,"retry_after_ms":5}}],
                "released":[{"lease":4}],"beat":{"in_flight":1,"digest":1},"bye":{"reason":"r"}}"#,
        )
        .unwrap();
        assert!(said.hello.is_none() && said.refused.is_empty());
        let frame = &said.frame;
        assert_eq!(frame.credits, [(String::new(), 2), ("p".to_owned(), 1)]);
        assert_eq!((frame.started.as_slice(), frame.released.as_slice()), (&[1][..], &[4][..]));
        assert_eq!(frame.chunks[0].1.data, r#"{"n":9007199254740993}"#);
        assert!(matches!(&frame.results[0].end, AttemptEnd::Succeeded(payload) if payload.data == "1e400"));
        assert!(matches!(&frame.results[1].end, AttemptEnd::Succeeded(payload) if payload.data == "null"));
        assert!(
            matches!(&frame.results[2].end, AttemptEnd::Failed { error, retryable: Some(false), retry_after_ms: 5 }
            if error.code == "c" && error.details.as_ref().is_some_and(|details| details.data == "[1]"))
        );
        assert_eq!((frame.beat, frame.bye.as_deref()), (Some((1, 1)), Some("r")));
        assert_eq!(said.finished().collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_bad_entry_is_refused_for_itself() {
        let said = said(
            r#"{"results":[{"lease":1,"succeeded":1,"failed":{}},{"lease":2,"succeeded":{"base64":"?","content_type":"x"}},
                {"lease":3,"sucesss":1},{"lease":"4"},{"lease":5,"succeeded":5}],"started":[{},7]}"#,
        )
        .unwrap();
        assert_eq!(said.frame.results.len(), 1);
        let leases: Vec<u64> = said.refused.iter().map(|(lease, _)| *lease).collect();
        assert_eq!(leases, [0, 0, 1, 2, 3, 0]);
        assert!(said.refused.iter().all(|(_, error)| error.reason == Reason::InvalidField));
        assert!(
            refusals(&said.refused)
                .starts_with(r#"{"errors":[{"lease":0,"reason":"invalid_field","message":"#)
        );
    }

    #[test]
    fn a_message_that_makes_no_sense_is_refused_as_a_whole() {
        for text in
            ["", "{", "nonsense", "\u{feff}{}", "{} {}", "{\"beat\":NaN}", "{\"bye\":{\"reason\":\"\u{1}\"}}"]
        {
            assert!(matches!(said(text), Err(Unreadable::Json(_))), "{text:?}");
        }
        for text in [
            "[]",
            "1",
            r#"{"credit":[]}"#,
            r#"{"credits":[{"total":-1}]}"#,
            r#"{"beat":{},"beat":{}}"#,
            r#"{"hello":[]}"#,
        ] {
            assert!(matches!(said(text), Err(Unreadable::Rule(_))), "{text:?}");
        }
        let deep = format!(r#"{{"results":[{}1{}]}}"#, "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert_eq!(said(&deep).unwrap().refused.len(), 1);
        let many = format!(r#"{{"started":[{}1]}}"#, "1,".repeat(65_536));
        assert!(matches!(said(&many), Err(Unreadable::Rule(error)) if error.reason == Reason::TooManyItems));
    }

    #[test]
    fn what_waits_is_cut_into_messages() {
        let items: Vec<SessionItem> =
            (0..10_000).map(|lease| SessionItem::Tell(Tell::Recall(lease))).collect();
        let messages: Vec<String> = messages(&items).collect();
        assert_eq!(messages.len(), 5);
        assert!(messages[0].starts_with(r#"{"recall":[{"lease":0},"#));
        assert!(messages.iter().all(|message| message.len() < MESSAGE_BYTES));
    }
}
