//! The name of a message's schema.

use std::sync::Arc;

use super::{Codec, CodecError, shown};
use crate::message::Message;
use crate::value::Value;

/// The header with the name of the body's schema, as text.
pub const SCHEMA: &str = "millstream-schema";

/// A codec whose messages carry the name of their schema, and which reads only those that carry the same.
///
/// The name travels in the header [`SCHEMA`] and is compared as it is: `order.v1` and `order.v2` are as different as
/// any two. Put it outermost, so that a message of another schema is refused before anything is decompressed or parsed.
///
/// ```
/// use millstream_message::codec::{Codec, Json, SCHEMA, Typed};
///
/// let orders = Typed::new(Json, "order.v2");
/// let message = orders.encode(&17_u64)?;
/// assert_eq!(message.header(SCHEMA), Some(&"order.v2".into()));
/// assert!(Codec::<u64>::decode(&Typed::new(Json, "invoice.v1"), &message).is_err());
/// # Ok::<(), millstream_message::codec::CodecError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Typed<C> {
    codec: C,
    schema: Arc<str>,
    undeclared: bool,
}

impl<C> Typed<C> {
    /// The codec for messages of this schema alone.
    pub fn new(codec: C, schema: impl Into<Arc<str>>) -> Typed<C> {
        Typed { codec, schema: schema.into(), undeclared: false }
    }

    /// Reads also messages that name no schema, as other programs publish them.
    #[must_use]
    pub fn allow_undeclared(mut self) -> Typed<C> {
        self.undeclared = true;
        self
    }

    fn check(&self, message: &Message) -> Result<(), CodecError> {
        let declared = match message.header(SCHEMA) {
            Some(Value::Text(name)) if **name == *self.schema => return Ok(()),
            Some(Value::Text(name)) => shown(name),
            Some(_) => "a header that is not text".to_owned(),
            None if self.undeclared => return Ok(()),
            None => "nothing".to_owned(),
        };
        Err(CodecError::Schema { declared, wanted: self.schema.to_string() })
    }
}

impl<T, C: Codec<T>> Codec<T> for Typed<C> {
    fn content_type(&self) -> &'static str {
        self.codec.content_type()
    }

    fn encode(&self, value: &T) -> Result<Message, CodecError> {
        Ok(self.codec.encode(value)?.with_header(SCHEMA, &*self.schema))
    }

    fn decode(&self, message: &Message) -> Result<T, CodecError> {
        self.check(message)?;
        self.codec.decode(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Json;

    fn read(codec: &Typed<Json>, message: &Message) -> Result<u32, CodecError> {
        codec.decode(message)
    }

    #[test]
    fn the_name_is_declared_and_read() {
        let codec = Typed::new(Json, "number");
        let message = codec.encode(&5_u32).expect("a number");
        assert_eq!(message.header("millstream-schema"), Some(&"number".into()));
        assert_eq!(Codec::<u32>::content_type(&codec), "application/json");
        assert_eq!(read(&codec, &message).expect("the same schema"), 5);
    }

    #[test]
    fn a_mismatch_names_both_schemas_before_the_body_is_looked_at() {
        let message = Message::new("no JSON").with_header(SCHEMA, "order.v1");
        let error = read(&Typed::new(Json, "order.v2").allow_undeclared(), &message).expect_err("another");
        let CodecError::Schema { declared, wanted } = &error else { panic!("{error}") };
        assert_eq!((&**declared, &**wanted), ("order.v1", "order.v2"));
        assert!(error.to_string().contains("`order.v1`") && error.to_string().contains("`order.v2`"));
    }

    #[test]
    fn an_undeclared_schema_is_an_error_unless_it_is_allowed() {
        let message = Json.encode(&5_u32).expect("a number");
        let error = read(&Typed::new(Json, "number"), &message).expect_err("undeclared").to_string();
        assert!(error.contains("`nothing`") && error.contains("`number`"), "{error}");
        assert_eq!(read(&Typed::new(Json, "number").allow_undeclared(), &message).expect("allowed"), 5);
        let strange = message.with_header(SCHEMA, 7_i64);
        assert!(read(&Typed::new(Json, "number").allow_undeclared(), &strange).is_err(), "a name is text");
    }
}
