//! A pin: the hash of a public key, by which one program recognises another.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// SHA-256 of a certificate's SubjectPublicKeyInfo (DER). Text form: `sha256:` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(value_type = String))]
#[serde(try_from = "String", into = "String")]
pub struct Pin(pub [u8; 32]);

/// The text is not a pin.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("A pin is written as sha256: and 64 hex digits")]
pub struct NotAPin;

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Pin {
    type Err = NotAPin;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = text.strip_prefix("sha256:").ok_or(NotAPin)?;
        from_hex(hex).map(Self).ok_or(NotAPin)
    }
}

impl TryFrom<String> for Pin {
    type Error = NotAPin;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Pin> for String {
    fn from(pin: Pin) -> Self {
        pin.to_string()
    }
}

/// A secret of 256 random bits. Never displayed; text form on the wire is 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(value_type = String))]
#[serde(try_from = "String", into = "String")]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl TryFrom<String> for Secret {
    type Error = NotAPin;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        from_hex(&text).map(Self).ok_or(NotAPin)
    }
}

impl From<Secret> for String {
    fn from(secret: Secret) -> Self {
        to_hex(&secret.0)
    }
}

/// What an administrator carries from `ferry-agent setup` to `ferry host add`: the agent's pin, by which the server
/// recognises this agent, and a one-use secret, which proves to the agent that the administrator sent the server. Text
/// form: `ferry1.` + pin hex + `.` + secret hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnrolmentToken {
    /// Hash of the agent's public key.
    pub agent_pin: Pin,
    /// Valid for one enrolment.
    pub secret: Secret,
}

/// The text is not an enrolment token.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("An enrolment token is the line that `ferry-agent setup` prints, beginning with ferry1.")]
pub struct NotAToken;

impl fmt::Display for EnrolmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ferry1.{}.{}", to_hex(&self.agent_pin.0), to_hex(&self.secret.0))
    }
}

impl FromStr for EnrolmentToken {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.trim().split('.');
        let (Some("ferry1"), Some(pin), Some(secret), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NotAToken);
        };
        Ok(Self { agent_pin: Pin(from_hex(pin).ok_or(NotAToken)?), secret: Secret(from_hex(secret).ok_or(NotAToken)?) })
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pins_and_tokens_survive_their_text_form(pin: [u8; 32], secret: [u8; 32]) {
            let pin = Pin(pin);
            prop_assert_eq!(pin.to_string().parse(), Ok(pin));
            let token = EnrolmentToken { agent_pin: pin, secret: Secret(secret) };
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }

        #[test]
        fn no_text_panics_the_parsers(text: String) {
            let _ = text.parse::<Pin>();
            let _ = text.parse::<EnrolmentToken>();
        }
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(format!("{:?}", Secret([7; 32])), "Secret(…)");
    }
}
