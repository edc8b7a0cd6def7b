//! The plain part of jq, evaluated directly: paths, objects, comparisons, arithmetic, `if`, `tonumber`.
//!
//! Most maps are nothing else, and for them jq's streams of values cost ten times what the work costs (see
//! `examples/cost.rs`). Whatever is not plain, and every error, is left to jq itself, so that there is one
//! meaning and one wording; a plain form only ever gives the value that jq would give.

use crate::value::{Map, Num, Value};
use jaq_core::ValT;
use jaq_core::load::lex::StrPart;
use jaq_core::load::parse::{BinaryOp, Term};
use jaq_core::ops::{Cmp, Math};
use jaq_core::path::{Opt, Part};
use std::borrow::Cow;

/// A plain program: one value in, one value out.
#[derive(Debug)]
pub(super) enum Plain {
    Id,
    Const(Value),
    Index(Box<Plain>, Value),
    Object(Vec<(Value, Plain)>),
    Array(Vec<Plain>),
    Pipe(Box<Plain>, Box<Plain>),
    If(Vec<(Plain, Plain)>, Box<Plain>),
    Cmp(Cmp, Box<Plain>, Box<Plain>),
    Math(Math, Box<Plain>, Box<Plain>),
    And(Box<Plain>, Box<Plain>),
    Or(Box<Plain>, Box<Plain>),
    Alt(Box<Plain>, Box<Plain>),
    Not,
    ToNumber,
    ToString,
    /// A branch that is not plain: an item that comes here is jq's.
    Jq,
}

impl Plain {
    /// The plain form of a program, if all of it, branches of `if` excepted, has one.
    pub(super) fn of(source: &str) -> Option<Plain> {
        let term = jaq_core::load::parse(source, |parser| parser.term())?;
        match plain(&term)? {
            // Nothing but the input: jq does that as fast.
            Plain::Id | Plain::Jq => None,
            plain => Some(plain),
        }
    }

    /// The program's value; `None` where only jq can tell.
    pub(super) fn value(&self, input: &Value) -> Option<Value> {
        self.eval(input).map(Cow::into_owned)
    }

    fn eval<'v>(&'v self, input: &'v Value) -> Option<Cow<'v, Value>> {
        Some(match self {
            Plain::Id => Cow::Borrowed(input),
            Plain::Const(value) => Cow::Borrowed(value),
            Plain::Index(of, key) => match of.eval(input)? {
                Cow::Borrowed(Value::Obj(map)) => match map.get(key) {
                    Some(value) => Cow::Borrowed(value),
                    None => Cow::Owned(Value::Null),
                },
                other => Cow::Owned(other.into_owned().index(key).ok()?),
            },
            Plain::Object(entries) => {
                let mut map = Map::with_capacity_and_hasher(entries.len(), Default::default());
                for (key, value) in entries {
                    map.insert(key.clone(), value.eval(input)?.into_owned());
                }
                Cow::Owned(Value::obj(map))
            }
            Plain::Array(items) => {
                let items: Option<Vec<Value>> = items.iter().map(|item| item.value(input)).collect();
                Cow::Owned(Value::Arr(items?.into()))
            }
            Plain::Pipe(first, second) => match first.eval(input)? {
                Cow::Borrowed(value) => second.eval(value)?,
                Cow::Owned(value) => Cow::Owned(second.value(&value)?),
            },
            Plain::If(cases, otherwise) => {
                for (when, then) in cases {
                    if when.eval(input)?.as_bool() {
                        return then.eval(input);
                    }
                }
                otherwise.eval(input)?
            }
            Plain::Cmp(op, left, right) => {
                Cow::Owned(Value::Bool(op.run(&*left.eval(input)?, &*right.eval(input)?)))
            }
            Plain::Math(op, left, right) => {
                let (left, right) = (left.value(input)?, right.value(input)?);
                let result: Result<Value, _> = op.run(left, right);
                Cow::Owned(result.ok()?)
            }
            Plain::And(left, right) => {
                Cow::Owned(Value::Bool(left.eval(input)?.as_bool() && right.eval(input)?.as_bool()))
            }
            Plain::Or(left, right) => {
                Cow::Owned(Value::Bool(left.eval(input)?.as_bool() || right.eval(input)?.as_bool()))
            }
            Plain::Alt(left, right) => match left.eval(input)? {
                value if value.as_bool() => value,
                _ => right.eval(input)?,
            },
            Plain::Not => Cow::Owned(Value::Bool(!input.as_bool())),
            Plain::ToNumber => match input {
                Value::Num(_) => Cow::Borrowed(input),
                Value::TStr(text) => Cow::Owned(Value::Num(number(text)?)),
                _ => return None,
            },
            Plain::ToString => match input {
                Value::TStr(_) => Cow::Borrowed(input),
                _ => return None,
            },
            Plain::Jq => return None,
        })
    }
}

/// A text that is a number and nothing but that.
fn number(text: &[u8]) -> Option<Num> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    // Up to 18 digits without a leading zero are an integer, which is what most columns hold.
    if digits.len() <= 18 && !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) {
        if digits[0] == b'0' && digits.len() > 1 {
            return None;
        }
        let value = digits.iter().fold(0isize, |value, digit| value * 10 + isize::from(digit - b'0'));
        // Minus zero is a number of its own kind to jq.
        return match (digits.len() < text.len(), value) {
            (true, 0) => None,
            (true, value) => Some(Num::Int(-value)),
            (false, value) => Some(Num::Int(value)),
        };
    }
    if digits.first().is_some_and(u8::is_ascii_digit) { jaq_json::read::parse_single_num(text) } else { None }
}

fn plain(term: &Term<&str>) -> Option<Plain> {
    let boxed = |term: &Term<&str>| plain(term).map(Box::new);
    Some(match term {
        Term::Id => Plain::Id,
        Term::Num(digits) => Plain::Const(Value::from_num(digits).ok()?),
        Term::Neg(of) => match plain(of)? {
            Plain::Const(Value::Num(Num::Int(int))) => Plain::Const(Value::Num(Num::Int(int.checked_neg()?))),
            _ => return None,
        },
        Term::Str(..) => Plain::Const(text(term)?),
        Term::Arr(None) => Plain::Array(Vec::new()),
        Term::Arr(Some(items)) => {
            let mut list = Vec::new();
            commas(items, &mut list)?;
            Plain::Array(list)
        }
        Term::Obj(entries) => {
            let entry = |(key, value): &(Term<&str>, Option<Term<&str>>)| {
                let key = text(key)?;
                let value = match value {
                    Some(value) => plain(value)?,
                    // `{name}` stands for `{name: .name}`.
                    None => Plain::Index(Box::new(Plain::Id), key.clone()),
                };
                Some((key, value))
            };
            Plain::Object(entries.iter().map(entry).collect::<Option<_>>()?)
        }
        Term::BinOp(left, op, right) => match op {
            BinaryOp::Pipe(None) => Plain::Pipe(boxed(left)?, boxed(right)?),
            BinaryOp::Alt => Plain::Alt(boxed(left)?, boxed(right)?),
            BinaryOp::Or => Plain::Or(boxed(left)?, boxed(right)?),
            BinaryOp::And => Plain::And(boxed(left)?, boxed(right)?),
            BinaryOp::Math(op) => Plain::Math(*op, boxed(left)?, boxed(right)?),
            BinaryOp::Cmp(op) => Plain::Cmp(*op, boxed(left)?, boxed(right)?),
            _ => return None,
        },
        Term::IfThenElse(cases, otherwise) => {
            let branch = |term: &Term<&str>| plain(term).unwrap_or(Plain::Jq);
            let cases = cases.iter().map(|(when, then)| Some((plain(when)?, branch(then))));
            let otherwise = otherwise.as_ref().map_or(Plain::Id, |term| branch(term));
            Plain::If(cases.collect::<Option<_>>()?, Box::new(otherwise))
        }
        Term::Call(name, arguments) if arguments.is_empty() => match *name {
            "true" => Plain::Const(Value::Bool(true)),
            "false" => Plain::Const(Value::Bool(false)),
            "null" => Plain::Const(Value::Null),
            "not" => Plain::Not,
            "tonumber" => Plain::ToNumber,
            "tostring" => Plain::ToString,
            _ => return None,
        },
        Term::Path(of, path) => {
            let mut node = plain(of)?;
            for (part, optional) in &path.0 {
                let (Part::Index(key), Opt::Essential) = (part, optional) else { return None };
                let Plain::Const(key) = plain(key)? else { return None };
                node = Plain::Index(Box::new(node), key);
            }
            node
        }
        _ => return None,
    })
}

/// The values of `a, b, c` inside `[ ]`.
fn commas(term: &Term<&str>, into: &mut Vec<Plain>) -> Option<()> {
    if let Term::BinOp(left, BinaryOp::Comma, right) = term {
        commas(left, into)?;
        return commas(right, into);
    }
    into.push(plain(term)?);
    Some(())
}

/// A text without anything to be computed in it.
fn text(term: &Term<&str>) -> Option<Value> {
    let Term::Str(None, parts) = term else { return None };
    let mut text = String::new();
    for part in parts {
        match part {
            StrPart::Str(piece) => text.push_str(piece),
            StrPart::Char(char) => text.push(*char),
            StrPart::Term(_) => return None,
        }
    }
    Some(crate::value::text(&text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expr::Mapping;
    use crate::value;
    use proptest::prelude::*;

    const PROGRAMS: [&str; 17] = [
        "{a, b: .c, \"d e\": (.a | tonumber)}",
        "{a: 1, a: 2, b: .b.c, \"x\\ty\": null}",
        "if .a == \"NA\" then error(\"gone\") elif .b then {b} else {c} end",
        "if .a then .b end",
        ".a.b.c",
        ".a[0]",
        ".[\"a\"]",
        "[.a, .b, (.c | not)]",
        ".a + .b",
        ".a - 1",
        "(.a | tonumber) * 2 / 3 % 5",
        ".a // .b // \"none\"",
        ".a == .b and .c != .d or (.a | not)",
        ".a < .b",
        "{a: (.a | tostring), n: -1}",
        "[]",
        "{a: (.a >= 15 or .b <= 1.5)}",
    ];

    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            any::<i32>().prop_map(|n| n.to_string()),
            any::<u64>().prop_map(|n| n.to_string()),
            (-1e9..1e9).prop_map(|n: f64| n.to_string()),
            "(NA|x|-?[0-9]{1,20}|-?[0-9]{1,3}\\.[0-9]{1,3}|1e5| 7|00|-0|NaN|Infinity|1_0|\\[1\\])"
                .prop_map(|text| serde_json::to_string(&text).expect("a text")),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3)
                    .prop_map(|items| format!("[{}]", items.join(","))),
                proptest::collection::vec(
                    (prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")], inner),
                    0..4
                )
                .prop_map(|entries| {
                    let entries: Vec<_> =
                        entries.iter().map(|(key, item)| format!("\"{key}\":{item}")).collect();
                    format!("{{{}}}", entries.join(","))
                }),
            ]
        })
    }

    fn written(value: &Value) -> String {
        let mut out = Vec::new();
        value::write_json(&mut out, value);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn the_programs_of_this_test_are_plain() {
        for program in PROGRAMS {
            assert!(Plain::of(program).is_some(), "{program}");
        }
        for program in
            [".a[]", ".a?", "def tonumber: 7; {a: (.a | tonumber)}", "\"\\(.a)\"", "error", ".a as $x | $x"]
        {
            assert!(Plain::of(program).is_none(), "{program}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn a_plain_value_is_the_one_jq_gives(item in json(), index in 0..PROGRAMS.len()) {
            let program = PROGRAMS[index];
            let item = value::parse_json(item.as_bytes()).expect("JSON");
            if let Some(value) = Plain::of(program).and_then(|plain| plain.value(&item)) {
                let jq = Mapping::compile_only(program).expect(program).run(item.clone());
                let jq = jq.map(|value| value.as_ref().map(written)).map_err(|error| error.to_string());
                prop_assert_eq!(jq, Ok(Some(written(&value))), "{} on {}", program, written(&item));
            }
        }
    }
}
