//! Messages, deliveries, codecs, topology and the broker traits of Millstream.
