//! The methods of AMQP 0-9-1 with RabbitMQ's extensions, as the specification's tables list them.

use bytes::BufMut;
use millstream_message::Headers;

use super::wire::{Reader, WireError, put_longstr, put_shortstr, put_table};

/// The Rust type of a field.
macro_rules! rust_type {
    (octet) => { u8 };
    (short) => { u16 };
    (long) => { u32 };
    (longlong) => { u64 };
    (shortstr) => { String };
    (longstr) => { Vec<u8> };
    (table) => { Headers };
    (bits1) => { [bool; 1] };
    (bits2) => { [bool; 2] };
    (bits3) => { [bool; 3] };
    (bits4) => { [bool; 4] };
    (bits5) => { [bool; 5] };
}

macro_rules! read_field {
    ($reader:ident, shortstr) => {
        $reader.shortstr()?.to_owned()
    };
    ($reader:ident, longstr) => {
        $reader.longstr()?.to_vec()
    };
    ($reader:ident, octet) => {
        $reader.u8()?
    };
    ($reader:ident, short) => {
        $reader.u16()?
    };
    ($reader:ident, long) => {
        $reader.u32()?
    };
    ($reader:ident, longlong) => {
        $reader.u64()?
    };
    ($reader:ident, bits1) => {
        bits($reader.u8()?)
    };
    ($reader:ident, bits2) => {
        bits($reader.u8()?)
    };
    ($reader:ident, bits3) => {
        bits($reader.u8()?)
    };
    ($reader:ident, bits4) => {
        bits($reader.u8()?)
    };
    ($reader:ident, bits5) => {
        bits($reader.u8()?)
    };
    ($reader:ident, $other:ident) => {
        $reader.$other()?
    };
}

macro_rules! put_field {
    ($out:ident, $field:ident, octet) => {
        $out.put_u8(*$field)
    };
    ($out:ident, $field:ident, short) => {
        $out.put_u16(*$field)
    };
    ($out:ident, $field:ident, long) => {
        $out.put_u32(*$field)
    };
    ($out:ident, $field:ident, longlong) => {
        $out.put_u64(*$field)
    };
    ($out:ident, $field:ident, shortstr) => {
        put_shortstr($out, $field)
    };
    ($out:ident, $field:ident, longstr) => {
        put_longstr($out, $field)
    };
    ($out:ident, $field:ident, table) => {
        put_table($out, $field)
    };
    ($out:ident, $field:ident, $bits:ident) => {
        $out.put_u8(packed($field))
    };
}

/// Bits that stand beside each other share an octet, the first one lowest.
fn bits<const N: usize>(octet: u8) -> [bool; N] {
    std::array::from_fn(|at| octet & (1 << at) != 0)
}

fn packed(bits: &[bool]) -> u8 {
    bits.iter().enumerate().map(|(at, bit)| u8::from(*bit) << at).sum()
}

macro_rules! methods {
    ($($name:ident $class:literal $id:literal { $($field:ident: $kind:ident),* $(,)? })*) => {
        /// A method and its arguments. Reserved fields are kept, so that every frame comes back as it was.
        #[derive(Clone, Debug, PartialEq)]
        pub(crate) enum Method {
            $($name { $($field: rust_type!($kind)),* },)*
        }

        impl Method {
            /// Reads the whole of a method frame.
            pub(crate) fn read(payload: &[u8]) -> Result<Method, WireError> {
                let mut reader = Reader::new(payload);
                let (class, id) = (reader.u16()?, reader.u16()?);
                let method = match (class, id) {
                    $(($class, $id) => Method::$name { $($field: read_field!(reader, $kind)),* },)*
                    _ => return Err(WireError::Method(class, id)),
                };
                reader.end()?;
                Ok(method)
            }

            /// Writes the payload of a method frame.
            pub(crate) fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Method::$name { $($field),* } => {
                        out.put_u16($class);
                        out.put_u16($id);
                        $(put_field!(out, $field, $kind);)*
                    })*
                }
            }

            /// Its name, for errors.
            pub(crate) fn name(&self) -> &'static str {
                match self {
                    $(Method::$name { .. } => stringify!($name),)*
                }
            }
        }

        #[cfg(test)]
        pub(crate) mod tests {
            use super::*;
            use crate::proto::wire::tests::tables;
            use proptest::prelude::*;

            macro_rules! field_strategy {
                (shortstr) => { "\\PC{0,20}" };
                (longstr) => { prop::collection::vec(any::<u8>(), 0..40) };
                (table) => { tables() };
                ($other:ident) => { any::<rust_type!($other)>() };
            }

            pub(crate) fn methods() -> Vec<BoxedStrategy<Method>> {
                vec![$({
                    // A tuple for each, if only of the unit at its end.
                    let fields = ($(field_strategy!($kind),)* Just(()),);
                    fields.prop_map(|($($field,)* (),)| Method::$name { $($field),* }).boxed()
                }),*]
            }

            proptest! {
                #[test]
                fn every_method_comes_back(
                    method in prop::sample::select(methods()).prop_flat_map(|strategy| strategy)
                ) {
                    let mut out = Vec::new();
                    method.put(&mut out);
                    prop_assert_eq!(Method::read(&out), Ok(method.clone()));
                    out.push(0);
                    prop_assert_eq!(Method::read(&out), Err(WireError::Trailing));
                }

                #[test]
                fn any_bytes_are_a_method_or_an_error(
                    which in 0..METHODS.len(), bytes in prop::collection::vec(any::<u8>(), 0..100),
                ) {
                    let (class, id) = METHODS[which];
                    let mut payload = [class.to_be_bytes(), id.to_be_bytes()].concat();
                    payload.extend(bytes);
                    if let Ok(method) = Method::read(&payload) {
                        prop_assert!(!method.name().is_empty());
                    }
                }
            }

            const METHODS: &[(u16, u16)] = &[$(($class, $id)),*];

            #[test]
            fn the_tables_of_the_specification_are_complete() {
                // Methods a class, by the specification's index and RabbitMQ's list of extensions (update-secret,
                // nack, the bindings of exchanges, confirm.select); without access and the deprecated ones.
                for (class, count) in [(10, 14), (20, 6), (40, 8), (50, 10), (60, 18), (85, 2), (90, 6)] {
                    assert_eq!(METHODS.iter().filter(|method| method.0 == class).count(), count, "{class}");
                }
            }
        }
    };
}

methods! {
    ConnectionStart 10 10 {
        version_major: octet, version_minor: octet, server_properties: table, mechanisms: longstr, locales: longstr,
    }
    ConnectionStartOk 10 11 { client_properties: table, mechanism: shortstr, response: longstr, locale: shortstr }
    ConnectionSecure 10 20 { challenge: longstr }
    ConnectionSecureOk 10 21 { response: longstr }
    ConnectionTune 10 30 { channel_max: short, frame_max: long, heartbeat: short }
    ConnectionTuneOk 10 31 { channel_max: short, frame_max: long, heartbeat: short }
    ConnectionOpen 10 40 { vhost: shortstr, reserved_1: shortstr, reserved_2: bits1 }
    ConnectionOpenOk 10 41 { reserved_1: shortstr }
    ConnectionClose 10 50 { code: short, text: shortstr, class: short, method: short }
    ConnectionCloseOk 10 51 {}
    ConnectionBlocked 10 60 { reason: shortstr }
    ConnectionUnblocked 10 61 {}
    ConnectionUpdateSecret 10 70 { new_secret: longstr, reason: shortstr }
    ConnectionUpdateSecretOk 10 71 {}

    ChannelOpen 20 10 { reserved_1: shortstr }
    ChannelOpenOk 20 11 { reserved_1: longstr }
    ChannelFlow 20 20 { active: bits1 }
    ChannelFlowOk 20 21 { active: bits1 }
    ChannelClose 20 40 { code: short, text: shortstr, class: short, method: short }
    ChannelCloseOk 20 41 {}

    // passive, durable, auto-delete, internal, no-wait
    ExchangeDeclare 40 10 { reserved_1: short, exchange: shortstr, kind: shortstr, flags: bits5, arguments: table }
    ExchangeDeclareOk 40 11 {}
    // if-unused, no-wait
    ExchangeDelete 40 20 { reserved_1: short, exchange: shortstr, flags: bits2 }
    ExchangeDeleteOk 40 21 {}
    ExchangeBind 40 30 {
        reserved_1: short, destination: shortstr, source: shortstr, routing_key: shortstr, nowait: bits1, arguments: table,
    }
    ExchangeBindOk 40 31 {}
    ExchangeUnbind 40 40 {
        reserved_1: short, destination: shortstr, source: shortstr, routing_key: shortstr, nowait: bits1, arguments: table,
    }
    ExchangeUnbindOk 40 51 {}

    // passive, durable, exclusive, auto-delete, no-wait
    QueueDeclare 50 10 { reserved_1: short, queue: shortstr, flags: bits5, arguments: table }
    QueueDeclareOk 50 11 { queue: shortstr, messages: long, consumers: long }
    QueueBind 50 20 {
        reserved_1: short, queue: shortstr, exchange: shortstr, routing_key: shortstr, nowait: bits1, arguments: table,
    }
    QueueBindOk 50 21 {}
    QueuePurge 50 30 { reserved_1: short, queue: shortstr, nowait: bits1 }
    QueuePurgeOk 50 31 { messages: long }
    // if-unused, if-empty, no-wait
    QueueDelete 50 40 { reserved_1: short, queue: shortstr, flags: bits3 }
    QueueDeleteOk 50 41 { messages: long }
    QueueUnbind 50 50 {
        reserved_1: short, queue: shortstr, exchange: shortstr, routing_key: shortstr, arguments: table,
    }
    QueueUnbindOk 50 51 {}

    BasicQos 60 10 { prefetch_size: long, prefetch_count: short, global: bits1 }
    BasicQosOk 60 11 {}
    // no-local, no-ack, exclusive, no-wait
    BasicConsume 60 20 { reserved_1: short, queue: shortstr, consumer_tag: shortstr, flags: bits4, arguments: table }
    BasicConsumeOk 60 21 { consumer_tag: shortstr }
    BasicCancel 60 30 { consumer_tag: shortstr, nowait: bits1 }
    BasicCancelOk 60 31 { consumer_tag: shortstr }
    // mandatory, immediate
    BasicPublish 60 40 { reserved_1: short, exchange: shortstr, routing_key: shortstr, flags: bits2 }
    BasicReturn 60 50 { code: short, text: shortstr, exchange: shortstr, routing_key: shortstr }
    BasicDeliver 60 60 {
        consumer_tag: shortstr, delivery_tag: longlong, redelivered: bits1, exchange: shortstr, routing_key: shortstr,
    }
    BasicGet 60 70 { reserved_1: short, queue: shortstr, no_ack: bits1 }
    BasicGetOk 60 71 {
        delivery_tag: longlong, redelivered: bits1, exchange: shortstr, routing_key: shortstr, messages: long,
    }
    BasicGetEmpty 60 72 { reserved_1: shortstr }
    BasicAck 60 80 { delivery_tag: longlong, multiple: bits1 }
    BasicReject 60 90 { delivery_tag: longlong, requeue: bits1 }
    BasicRecoverAsync 60 100 { requeue: bits1 }
    BasicRecover 60 110 { requeue: bits1 }
    BasicRecoverOk 60 111 {}
    // multiple, requeue
    BasicNack 60 120 { delivery_tag: longlong, flags: bits2 }

    ConfirmSelect 85 10 { nowait: bits1 }
    ConfirmSelectOk 85 11 {}

    TxSelect 90 10 {}
    TxSelectOk 90 11 {}
    TxCommit 90 20 {}
    TxCommitOk 90 21 {}
    TxRollback 90 30 {}
    TxRollbackOk 90 31 {}
}
