//! An item as CEL sees it: nothing is converted before the expression asks for it.

use crate::value::{self, Num, Value};
use cel::ExecutionError;
use cel::common::traits::{Container, Indexer, Iterable, Iterator as CelIterator, Sizer};
use cel::common::types::{
    CelBool, CelBytes, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt, Type,
};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use std::sync::OnceLock;

/// Resolves the one variable, `item`.
pub(super) struct Item<'a>(pub(super) &'a Value);

impl VariableResolver for Item<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        (variable == "item").then(|| view(self.0))
    }
}

/// A value as CEL's: scalars by value, text by reference, objects by [`Object`].
fn view<'b, 'v>(value: &'v Value) -> CowVal<'b, 'v> {
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
        Value::Arr(items) => {
            let items: Vec<Box<dyn Val + 'v>> = items.iter().map(|item| view(item).into_owned()).collect();
            CowVal::owned(CelList::from(items))
        }
        Value::Obj(map) => CowVal::owned(Object { value, map, whole: OnceLock::new() }),
    }
}

/// An object whose fields are looked up in place. What needs all of it at once (iteration, equality) builds
/// CEL's own map, once.
struct Object<'v> {
    value: &'v Value,
    map: &'v value::Map,
    whole: OnceLock<CelMap<'v>>,
}

impl<'v> Object<'v> {
    fn find(&self, key: &dyn Val) -> Option<&'v Value> {
        let key = key.downcast_ref::<CelString>()?;
        self.map.get(&value::text(key.inner()))
    }

    fn whole(&self) -> &CelMap<'v> {
        self.whole.get_or_init(|| {
            // Keys are text in JSON; what jq may have put there besides is out of CEL's reach.
            let entries = self.map.iter().filter_map(|(key, value)| match key {
                Value::TStr(key) => {
                    Some((CelMapKey::from(std::str::from_utf8(key).ok()?), view(value).into_owned()))
                }
                _ => None,
            });
            CelMap::from(entries.collect::<std::collections::HashMap<CelMapKey<'v>, Box<dyn Val + 'v>>>())
        })
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
        self.whole().equals(other)
    }

    fn clone_as_boxed<'w>(&self) -> Box<dyn Val + 'w>
    where
        Self: 'w,
    {
        Box::new(Object { value: self.value, map: self.map, whole: OnceLock::new() })
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
            Some(value) => Ok(view(value)),
            None => Err(missing(key)),
        }
    }

    fn steal<'w>(self: Box<Self>, key: &dyn Val) -> Result<Box<dyn Val + 'w>, ExecutionError>
    where
        Self: 'w,
    {
        match self.find(key) {
            Some(value) => Ok(view(value).into_owned()),
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
