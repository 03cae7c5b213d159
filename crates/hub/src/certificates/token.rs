//! Bootstrap tokens (`abcdef.0123456789abcdef`): an id that may be known, and a secret.

use std::fmt;

/// A bootstrap token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    text: String,
}

/// Length of the id.
const ID: usize = 6;
/// Length of the secret.
const SECRET: usize = 16;

impl Token {
    /// Reads one; `None` when it has not the form that API servers require. Space around it is ignored.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (id, secret) = text.split_once('.')?;
        let plain = |part: &str, length: usize| {
            part.len() == length
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        (plain(id, ID) && plain(secret, SECRET)).then(|| Self {
            text: text.to_owned(),
        })
    }

    /// The whole, as it goes into an `Authorization` header.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The part that is no secret.
    pub fn id(&self) -> &str {
        self.text.split('.').next().unwrap_or_default()
    }

    /// The secret.
    pub(super) fn secret(&self) -> &str {
        self.text.split('.').nth(1).unwrap_or_default()
    }
}

impl fmt::Debug for Token {
    /// Without the secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Token({}.…)", self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_one_form() {
        let token = Token::parse(" abc123.0123456789abcdef\n").unwrap();
        assert_eq!((token.id(), token.secret()), ("abc123", "0123456789abcdef"));
        assert!(!format!("{token:?}").contains("0123456789abcdef"));
        for bad in [
            "",
            ".",
            "abcdef",
            "abcdef.",
            "ABCDEF.0123456789abcdef",
            "abcdef.0123456789abcde",
            "abcdef.0123456789abcdef.x",
            "abcdeé.0123456789abcdef",
            "abcdef.0123456789abcde\n",
        ] {
            assert_eq!(Token::parse(bad), None, "{bad:?}");
        }
    }
}
