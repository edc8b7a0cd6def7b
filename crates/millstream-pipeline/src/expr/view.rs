//! An item as CEL sees it: nothing is converted before the expression asks for it, and then no more than one level.

use crate::value::{self, Num, Value};
use cel::ExecutionError;
use cel::common::traits::{Container, Indexer, Iterable, Iterator as CelIterator, Sizer};
use cel::common::types::{
    CelBool, CelBytes, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt, Type,
};
use cel::common::value::{BuiltinRef, CowVal, Val};
use cel::context::VariableResolver;
use std::sync::OnceLock;

/// How an item is shown to an expression.
///
/// In place is what costs least: nothing is built of what the expression does not look at. But a list or map of CEL's own on
/// the left of an equality asks the other side for a list or map of CEL's own (`as_builtin`), and an object in place that
/// nobody has read whole has none to show: the two would never be equal. So an expression that can make lists or maps, and
/// thus can have one on the left, is shown CEL's own where it could compare them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// Lists and objects in place, whatever the depth.
    InPlace,
    /// The item in place, its fields as CEL's own lists and maps: those that the expression makes are equal to no others.
    Fields,
    /// All of it as CEL's own.
    Own,
}

impl Shown {
    /// How `source` needs it.
    pub(super) fn to(source: &str) -> Self {
        let makes = ["{", "[", "+", "map", "filter"].iter().any(|form| source.contains(form));
        let bare = source.match_indices("item").any(|(at, word)| {
            let behind = source[at + word.len()..].trim_start();
            !behind.starts_with(['.', '['])
        });
        match (makes, bare) {
            (false, _) => Shown::InPlace,
            (true, false) => Shown::Fields,
            (true, true) => Shown::Own,
        }
    }

    fn within(self) -> Self {
        if self == Shown::Fields { Shown::Own } else { self }
    }
}

/// Resolves the one variable, `item`.
pub(super) struct Item<'a>(pub(super) &'a Value, pub(super) Shown);

impl VariableResolver for Item<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        (variable == "item").then(|| view(self.0, self.1))
    }
}

/// A value as CEL's: scalars by value, text by reference.
fn view<'b, 'v>(value: &'v Value, shown: Shown) -> CowVal<'b, 'v> {
    match value {
        Value::Null => CowVal::owned(CelNull),
        Value::Bool(value) => CowVal::owned(CelBool::from(*value)),
        Value::Num(number) => match number {
            Num::Int(int) => CowVal::owned(CelInt::from(*int as i64)),
            Num::Float(float) => CowVal::owned(CelDouble::from(*float)),
            // Beyond 64 bits only the magnitude is left, as in any CEL.
            other => match other.to_string().parse::<u64>() {
                Ok(int) => CowVal::owned(CelUInt::from(int)),
                Err(_) => CowVal::owned(CelDouble::from(other.to_string().parse().unwrap_or(f64::NAN))),
            },
        },
        Value::TStr(text) => match std::str::from_utf8(text) {
            Ok(text) => CowVal::owned(CelString::from(text)),
            Err(_) => CowVal::owned(CelString::from(String::from_utf8_lossy(text).into_owned())),
        },
        Value::BStr(bytes) => CowVal::owned(CelBytes::from(&bytes[..])),
        Value::Arr(items) if shown == Shown::InPlace => CowVal::owned(List { items, whole: OnceLock::new() }),
        Value::Arr(items) => CowVal::owned(list(items, shown)),
        Value::Obj(map) if shown == Shown::Own => CowVal::owned(self::map(map, shown)),
        Value::Obj(map) => CowVal::owned(Object { value, map, shown, whole: OnceLock::new() }),
    }
}

/// CEL's own list.
fn list<'v>(items: &'v [Value], shown: Shown) -> CelList<'v> {
    let items = items.iter().map(|item| view(item, shown).into_owned());
    CelList::from(items.collect::<Vec<Box<dyn Val + 'v>>>())
}

/// CEL's own map.
fn map<'v>(map: &'v value::Map, shown: Shown) -> CelMap<'v> {
    // Keys are text in JSON; what jq may have put there besides is out of CEL's reach.
    let entries = map.iter().filter_map(|(key, value)| match key {
        Value::TStr(key) => {
            Some((CelMapKey::from(std::str::from_utf8(key).ok()?), view(value, shown).into_owned()))
        }
        _ => None,
    });
    CelMap::from(entries.collect::<std::collections::HashMap<CelMapKey<'v>, Box<dyn Val + 'v>>>())
}

/// Has a list or an object in place build what CEL compares it by.
fn built<'o, 'v>(other: &'o (dyn Val + 'v)) -> &'o (dyn Val + 'v) {
    if let Some(parts) = other.as_iterable() {
        drop(parts.iter());
    }
    other
}

/// An object whose fields are looked up in place. What needs all of it at once (iteration, equality) builds
/// CEL's own map, once.
struct Object<'v> {
    value: &'v Value,
    map: &'v value::Map,
    shown: Shown,
    whole: OnceLock<Box<CelMap<'v>>>,
}

impl<'v> Object<'v> {
    fn find(&self, key: &dyn Val) -> Option<&'v Value> {
        let key = key.downcast_ref::<CelString>()?;
        self.map.get(&value::text(key.inner()))
    }

    fn whole(&self) -> &CelMap<'v> {
        self.whole.get_or_init(|| Box::new(map(self.map, self.shown.within())))
    }
}

impl std::fmt::Debug for Object<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.value)
    }
}

impl Val for Object<'_> {
    fn get_type(&self) -> &Type {
        CelMap::cel_type()
    }

    fn cel_type() -> &'static Type {
        CelMap::cel_type()
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn as_indexer<'b, 'w>(&'b self) -> Option<&'b (dyn Indexer + 'w)>
    where
        Self: 'w,
    {
        Some(self)
    }

    fn as_iterable<'b, 'w>(&'b self) -> Option<&'b (dyn Iterable + 'w)>
    where
        Self: 'w,
    {
        Some(self)
    }

    fn as_sizer(&self) -> Option<&dyn Sizer> {
        Some(self)
    }

    fn equals(&self, other: &dyn Val) -> bool {
        self.whole().equals(built(other))
    }

    /// What a map of CEL's own looks for in the other, when the two are compared. An object that is only looked into has none.
    fn as_builtin<'b, 'w>(&'b self) -> BuiltinRef<'b, 'w>
    where
        Self: 'w,
    {
        self.whole.get().map_or(BuiltinRef::Other, |whole| BuiltinRef::Map(whole))
    }

    fn into_indexer<'w>(self: Box<Self>) -> Option<Box<dyn Indexer + 'w>>
    where
        Self: 'w,
    {
        Some(self)
    }

    fn clone_as_boxed<'w>(&self) -> Box<dyn Val + 'w>
    where
        Self: 'w,
    {
        Box::new(Object { value: self.value, map: self.map, shown: self.shown, whole: OnceLock::new() })
    }
}

impl Container for Object<'_> {
    fn contains(&self, key: &dyn Val) -> Result<bool, ExecutionError> {
        Ok(self.find(key).is_some())
    }
}

impl Indexer for Object<'_> {
    fn get<'b, 'w>(&'b self, key: &dyn Val) -> Result<CowVal<'b, 'w>, ExecutionError>
    where
        Self: 'w,
    {
        match self.find(key) {
            Some(value) => Ok(view(value, self.shown.within())),
            None => Err(missing(key)),
        }
    }

    fn steal<'w>(self: Box<Self>, key: &dyn Val) -> Result<Box<dyn Val + 'w>, ExecutionError>
    where
        Self: 'w,
    {
        match self.find(key) {
            Some(value) => Ok(view(value, self.shown.within()).into_owned()),
            None => Err(missing(key)),
        }
    }
}

fn missing(key: &dyn Val) -> ExecutionError {
    let name = key.downcast_ref::<CelString>().map(|key| key.inner().to_owned());
    ExecutionError::NoSuchKey(name.unwrap_or_else(|| format!("{key:?}")).into())
}

impl Iterable for Object<'_> {
    fn iter<'b, 'w>(&'b self) -> Box<dyn CelIterator<'b, 'w> + 'b>
    where
        Self: 'w,
    {
        self.whole().iter()
    }
}

impl Sizer for Object<'_> {
    fn size(&self) -> CelInt {
        CelInt::from(self.map.len() as i64)
    }
}

/// A list that is seldom needed whole: its length, and whether it has an item, are told in place. Iteration and equality build
/// CEL's own list, once.
struct List<'v> {
    items: &'v [Value],
    whole: OnceLock<Box<CelList<'v>>>,
}

impl<'v> List<'v> {
    fn whole(&self) -> &CelList<'v> {
        self.whole.get_or_init(|| Box::new(list(self.items, Shown::InPlace)))
    }
}

impl std::fmt::Debug for List<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.items).finish()
    }
}

impl Val for List<'_> {
    fn get_type(&self) -> &Type {
        CelList::cel_type()
    }

    fn cel_type() -> &'static Type {
        CelList::cel_type()
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn as_iterable<'b, 'w>(&'b self) -> Option<&'b (dyn Iterable + 'w)>
    where
        Self: 'w,
    {
        Some(self)
    }

    fn as_sizer(&self) -> Option<&dyn Sizer> {
        Some(self)
    }

    fn equals(&self, other: &dyn Val) -> bool {
        self.whole().equals(built(other))
    }

    fn as_builtin<'b, 'w>(&'b self) -> BuiltinRef<'b, 'w>
    where
        Self: 'w,
    {
        self.whole.get().map_or(BuiltinRef::Other, |whole| BuiltinRef::List(whole))
    }

    fn clone_as_boxed<'w>(&self) -> Box<dyn Val + 'w>
    where
        Self: 'w,
    {
        Box::new(List { items: self.items, whole: OnceLock::new() })
    }
}

impl Container for List<'_> {
    fn contains(&self, value: &dyn Val) -> Result<bool, ExecutionError> {
        Ok(self.items.iter().any(|item| view(item, Shown::InPlace).equals(value)))
    }
}

impl Iterable for List<'_> {
    fn iter<'b, 'w>(&'b self) -> Box<dyn CelIterator<'b, 'w> + 'b>
    where
        Self: 'w,
    {
        self.whole().iter()
    }
}

impl Sizer for List<'_> {
    fn size(&self) -> CelInt {
        CelInt::from(self.items.len() as i64)
    }
}
