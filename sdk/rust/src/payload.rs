//! JSON in and out of payloads.
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::CallError;
use crate::proto::Payload;

impl Payload {
    /// The value as JSON. The content type stays empty, which means `application/json`.
    ///
    /// # Errors
    /// [`CallError::Encode`] when the value cannot be written as JSON.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, CallError> {
        let data = serde_json::to_vec(value).map_err(CallError::Encode)?;
        Ok(Self { data: data.into(), content_type: String::new() })
    }

    /// Bytes of any media type. Nobody between caller and handler looks inside.
    pub fn raw(data: impl Into<Bytes>, content_type: impl Into<String>) -> Self {
        Self { data: data.into(), content_type: content_type.into() }
    }

    /// Reads the JSON inside. An empty payload reads as `null`.
    ///
    /// # Errors
    /// [`CallError::Decode`] when the content type is not JSON or the JSON does not fit `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, CallError> {
        self.parse().map_err(CallError::Decode)
    }

    /// As `decode`; what went wrong is said without saying whose payload it is.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, String> {
        if !is_json(&self.content_type) {
            return Err(format!("it is `{}`, not JSON: read its bytes instead", self.content_type));
        }
        let data: &[u8] = if self.data.is_empty() { b"null" } else { &self.data };
        serde_json::from_slice(data).map_err(|error| format!("its JSON is not as expected: {error}"))
    }
}

fn is_json(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    media_type.is_empty()
        || media_type.eq_ignore_ascii_case("application/json")
        || media_type.to_ascii_lowercase().ends_with("+json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_round_trips() {
        let payload = Payload::json(&vec![1, 2]).unwrap();
        assert_eq!(payload.data, &b"[1,2]"[..]);
        assert_eq!(payload.content_type, "");
        assert_eq!(payload.decode::<Vec<i32>>().unwrap(), [1, 2]);
    }

    #[test]
    fn an_empty_payload_is_null() {
        assert_eq!(Payload::default().decode::<Option<i32>>().unwrap(), None);
    }

    #[test]
    fn only_json_is_decoded() {
        assert!(Payload::raw("1", "Application/JSON; charset=utf-8").decode::<i32>().is_ok());
        assert!(Payload::raw("1", "application/problem+json").decode::<i32>().is_ok());
        let error = Payload::raw("1", "text/plain").decode::<i32>().unwrap_err();
        assert!(error.to_string().contains("text/plain"), "{error}");
    }
}
