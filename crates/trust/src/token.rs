//! Random secrets and opaque tokens.

use ferry_core::pin::{Pin, Secret};
use ring::rand::{SecureRandom as _, SystemRandom};
use subtle::ConstantTimeEq as _;

/// 256 random bits.
///
/// # Panics
/// The kernel provides no randomness: without it, no secret could be created.
pub fn random_secret() -> Secret {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).expect("the kernel provides randomness");
    Secret(bytes)
}

/// Compares in constant time.
pub fn same_secret(one: &Secret, other: &Secret) -> bool {
    one.0.ct_eq(&other.0).into()
}

/// A new opaque token for the REST API. Only its [`token_hash`] may be stored.
pub fn new_token() -> String {
    format!("ferry_{}", String::from(random_secret()))
}

/// The stored form of a token, `sha256:` and hex digits. A token has 256 random bits, so no salt is needed.
pub fn token_hash(token: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    Pin(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_and_compare() {
        let (one, other) = (random_secret(), random_secret());
        assert!(same_secret(&one, &one) && !same_secret(&one, &other));
    }

    #[test]
    fn tokens_differ_and_their_hash_is_stable() {
        let token = new_token();
        assert_ne!(token, new_token());
        assert_eq!(token_hash(&token), token_hash(&token));
        assert!(!token_hash(&token).contains(&token[6..]));
    }
}
