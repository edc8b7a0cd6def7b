//! Bounds on what a deserializer may be made to do.
//!
//! Formats whose bytes choose how deep a value is nested can overflow the stack: `enum Tree { Leaf, Node(Box<Tree>) }`
//! costs one byte a level. And where an element may take no bytes, as in postcard, ten bytes ask for as many elements
//! as a loop can count. So both are counted here, between the deserializer and the types.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};

use super::DEPTH_MAX;

/// A value of `from`, which reads a body of `len` bytes.
pub(super) fn read<'de, T, D>(from: D, len: usize) -> Result<T, Box<dyn std::error::Error + Send + Sync>>
where
    T: DeserializeOwned,
    D: Deserializer<'de>,
    D::Error: Send + Sync + 'static,
{
    let bounds = Bounds::new(len);
    T::deserialize(bounds.guard(from)).map_err(|error| match bounds.exceeded.get() {
        Some(exceeded) => exceeded.into(),
        None => error.into(),
    })
}

/// What is left of both.
struct Bounds {
    depth: Cell<usize>,
    elements: Cell<usize>,
    /// Kept here too, because postcard's errors keep no words.
    exceeded: Cell<Option<Exceeded>>,
}

/// The bound that was hit.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum Exceeded {
    #[error("nested more than {DEPTH_MAX} deep")]
    Depth,
    #[error("more elements than the body has bytes")]
    Elements,
}

impl Bounds {
    /// Bounds for a body of this length in bytes. Elements without bytes are rare and few, hence the least.
    fn new(len: usize) -> Bounds {
        Bounds { depth: Cell::new(DEPTH_MAX), elements: Cell::new(len.max(1024)), exceeded: Cell::new(None) }
    }

    fn guard<X>(&self, inner: X) -> Guard<'_, X> {
        Guard { inner, bounds: self, counts: false }
    }

    /// Goes one level down for as long as `visit` takes.
    fn nested<R, E: Error>(&self, visit: impl FnOnce() -> Result<R, E>) -> Result<R, E> {
        let left = self.depth.get();
        if left == 0 {
            return Err(self.exceed(Exceeded::Depth));
        }
        self.depth.set(left - 1);
        let visited = visit();
        self.depth.set(left);
        visited
    }

    fn count<E: Error>(&self) -> Result<(), E> {
        match self.elements.get().checked_sub(1) {
            Some(left) => self.elements.set(left),
            None => return Err(self.exceed(Exceeded::Elements)),
        }
        Ok(())
    }

    fn exceed<E: Error>(&self, bound: Exceeded) -> E {
        self.exceeded.set(Some(bound));
        E::custom(bound)
    }
}

/// Any part of deserializing, with the bounds applied to what it leads to.
struct Guard<'a, X> {
    inner: X,
    bounds: &'a Bounds,
    /// Whether the elements are as many as the bytes say, rather than as the type has.
    counts: bool,
}

impl<'a, X> Guard<'a, X> {
    fn with<Y>(&self, inner: Y) -> Guard<'a, Y> {
        Guard { inner, bounds: self.bounds, counts: self.counts }
    }
}

macro_rules! forward {
    ($($method:ident($($argument:ident: $type:ty),*) $counts:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, $($argument: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            let visitor = Guard { inner: visitor, bounds: self.bounds, counts: $counts };
            self.inner.$method($($argument,)* visitor)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Guard<'_, D> {
    type Error = D::Error;

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }

    forward! {
        deserialize_any() true;
        deserialize_seq() true;
        deserialize_map() true;
        deserialize_ignored_any() true;
        deserialize_bool() false;
        deserialize_i8() false;
        deserialize_i16() false;
        deserialize_i32() false;
        deserialize_i64() false;
        deserialize_i128() false;
        deserialize_u8() false;
        deserialize_u16() false;
        deserialize_u32() false;
        deserialize_u64() false;
        deserialize_u128() false;
        deserialize_f32() false;
        deserialize_f64() false;
        deserialize_char() false;
        deserialize_str() false;
        deserialize_string() false;
        deserialize_bytes() false;
        deserialize_byte_buf() false;
        deserialize_option() false;
        deserialize_unit() false;
        deserialize_unit_struct(name: &'static str) false;
        deserialize_newtype_struct(name: &'static str) false;
        deserialize_tuple(len: usize) false;
        deserialize_tuple_struct(name: &'static str, len: usize) false;
        deserialize_struct(name: &'static str, fields: &'static [&'static str]) false;
        deserialize_enum(name: &'static str, variants: &'static [&'static str]) false;
        deserialize_identifier() false;
    }
}

macro_rules! visits {
    ($($method:ident: $type:ty;)*) => {$(
        fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
            self.inner.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Guard<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    visits! {
        visit_bool: bool;
        visit_i8: i8;
        visit_i16: i16;
        visit_i32: i32;
        visit_i64: i64;
        visit_i128: i128;
        visit_u8: u8;
        visit_u16: u16;
        visit_u32: u32;
        visit_u64: u64;
        visit_u128: u128;
        visit_f32: f32;
        visit_f64: f64;
        visit_char: char;
        visit_str: &str;
        visit_borrowed_str: &'de str;
        visit_string: String;
        visit_bytes: &[u8];
        visit_borrowed_bytes: &'de [u8];
        visit_byte_buf: Vec<u8>;
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    // Not a level: a type that contains itself does so by something that has a name, which is one.
    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(self.bounds.guard(from))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, from: D) -> Result<V::Value, D::Error> {
        let Guard { inner, bounds, .. } = self;
        bounds.nested(|| inner.visit_newtype_struct(bounds.guard(from)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let access = self.with(access);
        self.bounds.nested(|| self.inner.visit_seq(access))
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let access = self.with(access);
        self.bounds.nested(|| self.inner.visit_map(access))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let access = self.with(access);
        self.bounds.nested(|| self.inner.visit_enum(access))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Guard<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(self.bounds.guard(from))
    }
}

impl<X> Guard<'_, X> {
    /// At most what may still come: whoever reserves room by the hint reserves no more than that.
    fn hint(&self, hint: Option<usize>) -> Option<usize> {
        hint.map(|hint| hint.min(self.bounds.elements.get()))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Guard<'_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        let seed = self.bounds.guard(seed);
        let element = self.inner.next_element_seed(seed)?;
        if self.counts && element.is_some() {
            self.bounds.count()?;
        }
        Ok(element)
    }

    fn size_hint(&self) -> Option<usize> {
        self.hint(self.inner.size_hint())
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Guard<'_, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        let seed = self.bounds.guard(seed);
        let key = self.inner.next_key_seed(seed)?;
        if self.counts && key.is_some() {
            self.bounds.count()?;
        }
        Ok(key)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let seed = self.bounds.guard(seed);
        self.inner.next_value_seed(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        self.hint(self.inner.size_hint())
    }
}

impl<'de, 'a, A: EnumAccess<'de>> EnumAccess<'de> for Guard<'a, A> {
    type Error = A::Error;
    type Variant = Guard<'a, A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Guard<'a, A::Variant>), A::Error> {
        let bounds = self.bounds;
        let (value, variant) = self.inner.variant_seed(bounds.guard(seed))?;
        Ok((value, bounds.guard(variant)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Guard<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.newtype_variant_seed(self.bounds.guard(seed))
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.inner.tuple_variant(len, self.bounds.guard(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.inner.struct_variant(fields, self.bounds.guard(visitor))
    }
}

#[cfg(test)]
pub(super) mod samples {
    //! Values that take every way through the deserializers.

    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    /// Contains itself, by an enum.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(in crate::codec) enum Tree {
        Leaf,
        Value(i64),
        Node(Box<Tree>),
        Pair(Box<Tree>, Box<Tree>),
        Named { name: String, of: Vec<Tree> },
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(in crate::codec) struct Unit;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(in crate::codec) struct Id(pub(in crate::codec) u128);

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(in crate::codec) struct Sample {
        pub(in crate::codec) id: Id,
        pub(in crate::codec) unit: Unit,
        pub(in crate::codec) small: (i8, u16, bool, char),
        pub(in crate::codec) text: Option<String>,
        pub(in crate::codec) bytes: bytes::Bytes,
        pub(in crate::codec) number: f64,
        pub(in crate::codec) map: BTreeMap<String, Vec<Option<u32>>>,
        pub(in crate::codec) tree: Tree,
    }

    fn tree() -> impl Strategy<Value = Tree> {
        let leaf = prop_oneof![Just(Tree::Leaf), any::<i64>().prop_map(Tree::Value)];
        leaf.prop_recursive(6, 40, 4, |inner| {
            prop_oneof![
                inner.clone().prop_map(|tree| Tree::Node(Box::new(tree))),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| Tree::Pair(Box::new(a), Box::new(b))),
                (any::<String>(), proptest::collection::vec(inner, 0..4))
                    .prop_map(|(name, of)| Tree::Named { name, of }),
            ]
        })
    }

    pub(in crate::codec) fn sample() -> impl Strategy<Value = Sample> {
        let map = proptest::collection::btree_map(
            any::<String>(),
            proptest::collection::vec(any::<Option<u32>>(), 0..4),
            0..4,
        );
        let bytes = proptest::collection::vec(any::<u8>(), 0..40);
        (
            any::<u128>(),
            any::<(i8, u16, bool, char)>(),
            any::<Option<String>>(),
            bytes,
            -1e300..1e300,
            map,
            tree(),
        )
            .prop_map(|(id, small, text, bytes, number, map, tree)| Sample {
                id: Id(id),
                unit: Unit,
                small,
                text,
                bytes: bytes.into(),
                number,
                map,
                tree,
            })
    }

    /// A list that is `depth` deep.
    pub(in crate::codec) fn deep(depth: usize) -> Tree {
        (0..depth).fold(Tree::Leaf, |tree, _| Tree::Node(Box::new(tree)))
    }
}
