//! What a channel was closed for: the server's words about what was published.

use crate::proto::Closed;

/// What the server did not like, as it says.
#[derive(Debug, PartialEq)]
pub(super) enum Disliked<'a> {
    /// `NOT_FOUND - no exchange 'x' in vhost '/'`.
    Missing(&'a str),
    /// `ACCESS_REFUSED - cannot publish to internal exchange 'x' in vhost '/'`; `access to exchange 'x' in vhost '/' refused for
    /// user 'u'`; `access to topic 'k' in exchange 'x' in vhost …`.
    Forbidden { exchange: &'a str, key: Option<&'a str> },
    /// `PRECONDITION_FAILED - message size 11 is larger than configured max size 10`.
    Larger(u64),
    /// `PRECONDITION_FAILED - user_id property set to 'x' but authenticated user was 'y'`.
    User(&'a str),
}

impl Disliked<'_> {
    pub(super) fn of(closed: &Closed) -> Option<Disliked<'_>> {
        let text = closed.text.as_str();
        let exchange = || {
            let (_, rest) = text.split_once("exchange '")?;
            let (name, _) = rest.rsplit_once("' in vhost")?;
            Some(if name == "amq.default" { "" } else { name })
        };
        match closed.code {
            404 => exchange().map(Disliked::Missing),
            403 => {
                let topic =
                    text.split_once("topic '").and_then(|(_, rest)| rest.split_once("' in exchange '"));
                exchange().map(|exchange| Disliked::Forbidden { exchange, key: topic.map(|(key, _)| key) })
            }
            406 => match text.split_once("configured max size ") {
                Some((_, max)) => max.trim().parse().ok().map(Disliked::Larger),
                None => {
                    let (_, rest) = text.split_once("user_id property set to '")?;
                    rest.rsplit_once("' but ").map(|(user, _)| Disliked::User(user))
                }
            },
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_did_not_like_is_read_from_its_words() {
        let of = |code: u16, text: &str| {
            let closed = Closed { code, text: text.to_owned(), cause: (60, 40) };
            format!("{:?}", Disliked::of(&closed))
        };
        assert_eq!(
            of(404, "NOT_FOUND - no exchange 'it's mine' in vhost '/'"),
            "Some(Missing(\"it's mine\"))"
        );
        assert_eq!(of(404, "NOT_FOUND - no queue 'x' in vhost '/'"), "None");
        let text = "ACCESS_REFUSED - cannot publish to internal exchange 'x' in vhost '/'";
        assert_eq!(of(403, text), "Some(Forbidden { exchange: \"x\", key: None })");
        let text = "ACCESS_REFUSED - access to exchange 'amq.default' in vhost '/' refused for user 'u'";
        assert_eq!(of(403, text), "Some(Forbidden { exchange: \"\", key: None })");
        let text = "ACCESS_REFUSED - access to topic 'a.b' in exchange 'x' in vhost '/' refused for user 'u'";
        assert_eq!(of(403, text), "Some(Forbidden { exchange: \"x\", key: Some(\"a.b\") })");
        let text = "PRECONDITION_FAILED - message size 11 is larger than configured max size 10";
        assert_eq!(of(406, text), "Some(Larger(10))");
        let text = "PRECONDITION_FAILED - user_id property set to 'x' but authenticated user was 'y'";
        assert_eq!(of(406, text), "Some(User(\"x\"))");
        assert_eq!(of(541, "INTERNAL_ERROR"), "None");
    }
}
