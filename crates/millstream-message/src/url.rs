//! Broker addresses.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a broker is: `memory:`, `embedded:PATH`, `amqp://…`, `amqps://…`, `rabbitmq-stream://…`,
/// `rabbitmq-stream+tls://…`.
///
/// This crate only parses; whoever opens brokers decides which of them it can open.
///
/// ```
/// use millstream_message::BrokerUrl;
/// assert_eq!("embedded:state/orders".parse(), Ok(BrokerUrl::Embedded("state/orders".into())));
/// assert!("embeded:state".parse::<BrokerUrl>().unwrap_err().to_string().contains("`embedded:`"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BrokerUrl {
    /// A broker inside this process that forgets everything when it is dropped.
    Memory,
    /// A broker inside this process that keeps everything durable in this directory.
    Embedded(PathBuf),
    /// RabbitMQ by AMQP 0-9-1; the whole URL.
    Amqp(String),
    /// RabbitMQ by its stream protocol; the whole URL.
    RabbitmqStream(String),
}

/// Why a text is no [`BrokerUrl`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BrokerUrlError {
    message: String,
}

const SCHEMES: [&str; 6] = ["memory", "embedded", "amqp", "amqps", "rabbitmq-stream", "rabbitmq-stream+tls"];

impl FromStr for BrokerUrl {
    type Err = BrokerUrlError;

    fn from_str(text: &str) -> Result<BrokerUrl, BrokerUrlError> {
        let fail = |message: String| Err(BrokerUrlError { message });
        let shown = shown(text);
        let Some((scheme, rest)) = text.split_once(':') else {
            return fail(format!(
                "`{shown}` is no broker address: write `memory:`, `embedded:DIRECTORY`, `amqp://HOST` or \
                 `rabbitmq-stream://HOST`"
            ));
        };
        match scheme {
            "memory" if rest.is_empty() => Ok(BrokerUrl::Memory),
            "memory" => fail(format!("`{shown}`: `memory:` takes nothing after the colon")),
            "embedded" if rest.is_empty() => {
                fail("`embedded:` needs a directory, as in `embedded:state`".to_owned())
            }
            "embedded" => Ok(BrokerUrl::Embedded(PathBuf::from(rest))),
            "amqp" | "amqps" if rest.starts_with("//") => Ok(BrokerUrl::Amqp(text.to_owned())),
            "rabbitmq-stream" | "rabbitmq-stream+tls" if rest.starts_with("//") => {
                Ok(BrokerUrl::RabbitmqStream(text.to_owned()))
            }
            "amqp" | "amqps" | "rabbitmq-stream" | "rabbitmq-stream+tls" => {
                fail(format!("`{shown}`: write `{scheme}://HOST`"))
            }
            _ => {
                let nearest = SCHEMES.iter().min_by_key(|known| distance(scheme, known));
                let nearest = nearest.filter(|known| distance(scheme, known) <= 3);
                fail(match nearest {
                    Some(known) => format!("`{shown}`: unknown broker `{scheme}:`; did you mean `{known}:`?"),
                    None => format!(
                        "`{shown}`: unknown broker `{scheme}:`; known are {}",
                        SCHEMES.map(|known| format!("`{known}:`")).join(", ")
                    ),
                })
            }
        }
    }
}

/// Edits between two short words (Levenshtein), enough to guess what was meant.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

impl fmt::Display for BrokerUrl {
    /// Writes the address without a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BrokerUrl::Memory => f.write_str("memory:"),
            BrokerUrl::Embedded(path) => write!(f, "embedded:{}", path.display()),
            BrokerUrl::Amqp(url) | BrokerUrl::RabbitmqStream(url) => f.write_str(&shown(url)),
        }
    }
}

/// An address, or what was meant as one, without user and password.
fn shown(url: &str) -> Cow<'_, str> {
    let Some((before, host)) = url.rsplit_once('@') else { return url.into() };
    let scheme = before.split_inclusive("//").next().filter(|scheme| scheme.ends_with("//"));
    format!("{}***@{host}", scheme.unwrap_or_default()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(text: &str) -> String {
        text.parse::<BrokerUrl>().expect_err(text).to_string()
    }

    #[test]
    fn every_known_scheme_parses() {
        assert_eq!("memory:".parse(), Ok(BrokerUrl::Memory));
        assert_eq!("embedded:/var/lib/m".parse(), Ok(BrokerUrl::Embedded("/var/lib/m".into())));
        assert_eq!("amqps://host".parse(), Ok(BrokerUrl::Amqp("amqps://host".into())));
        assert_eq!(
            "rabbitmq-stream://h".parse(),
            Ok(BrokerUrl::RabbitmqStream("rabbitmq-stream://h".into()))
        );
        assert_eq!(
            "rabbitmq-stream+tls://h".parse(),
            Ok(BrokerUrl::RabbitmqStream("rabbitmq-stream+tls://h".into()))
        );
    }

    #[test]
    fn a_wrong_address_says_what_to_write() {
        assert!(complaint("state").contains("embedded:DIRECTORY"));
        assert!(complaint("embedded:").contains("needs a directory"));
        assert!(complaint("memroy:").contains("did you mean `memory:`"));
        assert!(complaint("kafka://x").contains("known are"));
        assert!(complaint("amqp:host").contains("amqp://HOST"));
        assert!(complaint("memory:x").contains("nothing after the colon"));
    }

    #[test]
    fn a_password_is_never_shown() {
        let url: BrokerUrl = "amqp://user:secret@host:5672/v".parse().expect("parses");
        assert_eq!(url.to_string(), "amqp://***@host:5672/v");
        for wrong in [
            "ampq://user:secret@host",
            "user:secret@host",
            "amqp:user:secret@host",
            "user@secret@host",
            "kafka:secret@h",
        ] {
            assert!(!complaint(wrong).contains("secret"), "{}", complaint(wrong));
        }
    }
}
