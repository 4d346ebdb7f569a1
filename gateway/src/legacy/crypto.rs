//! The encryption of the legacy protocol. It is obfuscation, not secrecy: the salt travels beside the key
//! that it protects, and every message under one key has the same nonce. Done here only when the operator
//! asked for it (`legacy_open_encrypted`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};

/// `base64(AES-256-GCM(text))`: the key is the SHA-256 of the secret, the nonce its first 12 bytes.
pub(crate) fn seal(text: &[u8], secret: &str) -> Option<String> {
    let (key, nonce) = cipher(secret)?;
    let mut data = text.to_vec();
    key.seal_in_place_append_tag(nonce, Aad::empty(), &mut data).ok()?;
    Some(STANDARD.encode(data))
}

/// What [`seal`] sealed; `None` when it was another secret, or something else altogether.
pub(crate) fn open(sealed: &str, secret: &str) -> Option<Vec<u8>> {
    let (key, nonce) = cipher(secret)?;
    let mut data = STANDARD.decode(sealed).ok()?;
    let length = key.open_in_place(nonce, Aad::empty(), &mut data).ok()?.len();
    data.truncate(length);
    Some(data)
}

fn cipher(secret: &str) -> Option<(LessSafeKey, Nonce)> {
    let hash = digest(&SHA256, secret.as_bytes());
    let key = UnboundKey::new(&AES_256_GCM, hash.as_ref()).ok()?;
    let nonce = Nonce::try_assume_unique_for_key(hash.as_ref().get(..12)?).ok()?;
    Some((LessSafeKey::new(key), nonce))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors() -> serde_json::Value {
        serde_json::from_str(include_str!("../../../tests/e2e/legacy/crypto_vectors.json")).unwrap()
    }

    fn text<'a>(entry: &'a serde_json::Value, name: &str) -> &'a str {
        entry[name].as_str().unwrap()
    }

    #[test]
    fn what_the_sdks_seal_is_what_we_seal() {
        let vectors = vectors();
        let list = vectors["vectors"].as_array().unwrap();
        assert!(list.len() > 8, "the file is not what it was");
        for vector in list {
            let (key, crypto, plain) =
                (text(vector, "key"), text(vector, "crypto"), text(vector, "plaintext_json"));
            let (params, salted) = (text(vector, "ciphertext_b64"), text(vector, "salted_key_b64"));
            assert_eq!(seal(plain.as_bytes(), key).unwrap(), params, "{}", vector["name"]);
            assert_eq!(seal(key.as_bytes(), crypto).unwrap(), salted, "{}", vector["name"]);
            assert_eq!(open(params, key).unwrap(), plain.as_bytes());
            assert_eq!(open(salted, crypto).unwrap(), key.as_bytes());
        }
    }

    #[test]
    fn what_went_over_the_wire_is_opened() {
        let vectors = vectors();
        for request in vectors["wire_requests"].as_array().unwrap() {
            let key = open(text(request, "salted_key_b64"), text(request, "crypto")).unwrap();
            assert_eq!(key, text(request, "key").as_bytes());
            let plain = open(text(request, "ciphertext_b64"), text(request, "key")).unwrap();
            assert_eq!(plain, text(request, "plaintext_json").as_bytes());
        }
        for result in vectors["wire_worker_results"].as_array().unwrap() {
            let plain = open(text(result, "result_b64"), text(result, "key")).unwrap();
            assert_eq!(plain, text(result, "plaintext").as_bytes());
        }
    }

    #[test]
    fn what_was_sealed_otherwise_is_not_opened() {
        for vector in vectors()["must_fail"].as_array().unwrap() {
            let of =
                |one: &str, other: &str| vector[one].as_str().or(vector[other].as_str()).unwrap().to_owned();
            let (sealed, secret) = (of("ciphertext_b64", "salted_key_b64"), of("key", "crypto"));
            assert_eq!(open(&sealed, &secret), None, "{}", vector["name"]);
        }
        for nonsense in ["", "AAAA", "not base64!", "UEFSQU1T"] {
            assert_eq!(open(nonsense, "k"), None, "{nonsense:?}");
        }
    }
}
