//! What keeps a jq program within its thread's stack, which would end the process with it, and within a number of steps, which
//! would hold all other items up: texts that nest deeply, and functions that call themselves without end, are errors of their
//! item instead.

use std::cell::Cell;

use jaq_core::load;
use jaq_core::load::lex::{StrPart, Tok, Token};
use jaq_core::native::{Fun, bome, run, v};
use jaq_core::{DataT, Error, Exn};
use jaq_json::{Rc, Val};

use super::ExpressionError;

/// How deep a text of JSON may nest, as everywhere else.
const NESTING: usize = 128;
/// Stack that a program may take, of the 2 MiB that threads have at the least: some hundred calls within each other.
const STACK: usize = 1 << 20;
/// How deep what a program gives may nest. Values are written, compared and dropped level by level.
const GIVEN: usize = 512;
/// How many steps a program may take for one item: calls of its own functions, and values of jq's functions that may go on for
/// ever (`more.jq` has those). Each is about a microsecond, and 32 bytes in `[range(…)]`.
const STEPS: u32 = if cfg!(test) { 20_000 } else { 2_000_000 };
/// Fails when the stack or the steps are used up; put in front of each function's body.
const CHECK: &str = "__millstream_step";

thread_local! {
    /// Where the stack was when the program began.
    static BASE: Cell<usize> = const { Cell::new(0) };
    /// How many steps it may still take.
    static LEFT: Cell<u32> = const { Cell::new(STEPS) };
    /// Why it was ended, if it was.
    static ENDED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// About where the stack is.
#[inline(never)]
fn here() -> usize {
    let marker = 0_u8;
    std::ptr::from_ref(std::hint::black_box(&marker)).addr()
}

/// A program begins here.
pub(super) fn begin() {
    BASE.set(here());
    LEFT.set(STEPS);
    ENDED.set(None);
}

/// Why the program has been ended, if not by itself.
pub(super) fn ended() -> Option<&'static str> {
    ENDED.get()
}

/// Functions of jq's that are otherwise here, and one more.
pub(super) fn funs<D: for<'a> DataT<V<'a> = Val>>() -> impl Iterator<Item = Fun<D>> {
    let from_json = run::<D>(("fromjson", v(0), |(_, value)| {
        let read = value.try_as_utf8_bytes_owned().and_then(|text| {
            if nests_too_deep(&text) {
                let why = format!("cannot parse a text that nests deeper than {NESTING} levels as JSON");
                return Err(Error::str(why));
            }
            let fail = |error| Error::str(format!("cannot parse {value} as JSON: {error}"));
            let (mut values, mut failed) = (Vec::new(), None);
            // Behind what cannot be read it would never end.
            for one in jaq_json::read::parse_many(&text) {
                match one {
                    Ok(one) => values.push(Ok(one)),
                    Err(error) => {
                        failed = Some(Err(fail(error)));
                        break;
                    }
                }
            }
            Ok(values.into_iter().chain(failed))
        });
        match read {
            Ok(values) => Box::new(values.map(|one| one.map_err(Exn::from))),
            Err(error) => bome(Err(error)),
        }
    }));
    let check = run::<D>((CHECK, v(0), |_| {
        let left = LEFT.get().saturating_sub(1);
        LEFT.set(left);
        let why = if BASE.get().abs_diff(here()) > STACK {
            "its functions call each other too deeply: recursion must end sooner"
        } else if left == 0 {
            "takes more than two million steps for one item: `range`, `until`, `while`, `repeat`, `recurse` and functions that call \
             themselves must end sooner"
        } else {
            return bome(Ok(Val::Null));
        };
        ENDED.set(Some(why));
        // An error could be caught, and the program go on.
        Box::new(std::iter::once(Err(Exn::halt(0))))
    }));
    let theirs = jaq_json::funs::<D>().filter(|(name, ..)| *name != "fromjson");
    theirs.chain([from_json, check])
}

/// What a program gives, unless it nests too deeply.
pub(super) fn bounded(value: Val) -> Result<Val, ExpressionError> {
    if !nests_deeper(&value, GIVEN) {
        return Ok(value);
    }
    take_apart(value);
    Err(ExpressionError(format!("gave a value that nests deeper than {GIVEN} levels")))
}

fn nests_deeper(value: &Val, levels: usize) -> bool {
    match value {
        Val::Arr(items) => levels == 0 || items.iter().any(|item| nests_deeper(item, levels - 1)),
        Val::Obj(map) => {
            let deeper = |part: &Val| nests_deeper(part, levels - 1);
            levels == 0 || map.iter().any(|(key, item)| deeper(key) || deeper(item))
        }
        _ => false,
    }
}

/// Drops a value without as many calls within each other as it has levels.
fn take_apart(value: Val) {
    let mut parts = vec![value];
    while let Some(part) = parts.pop() {
        // What others have, too, they drop.
        match part {
            Val::Arr(items) => parts.extend(Rc::try_unwrap(items).unwrap_or_default()),
            Val::Obj(map) => {
                for (key, item) in Rc::try_unwrap(map).unwrap_or_default() {
                    parts.extend([key, item]);
                }
            }
            _ => {}
        }
    }
}

/// Whether a text of JSON, with comments as jq knows them, may nest too deeply. What is no JSON may look deeper than it is.
fn nests_too_deep(text: &[u8]) -> bool {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(byte) = text.get(at) {
        at += 1;
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => at += text_end(&text[at..]),
            b'#' => at += text[at..].iter().position(|byte| *byte == b'\n').unwrap_or(text.len() - at),
            _ => {}
        }
        if depth > NESTING {
            return true;
        }
    }
    false
}

/// How long a text is, with the quote at its end.
fn text_end(text: &[u8]) -> usize {
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

/// The program with a check in front of each function's body; `None` if it has no functions of its own.
pub(super) fn checked(source: &str) -> Option<String> {
    let mut bodies = Vec::new();
    find_bodies(source, &load::Lexer::new(source).lex().ok()?, &mut bodies);
    if bodies.is_empty() {
        return None;
    }
    bodies.sort_unstable();
    let mut checked = String::with_capacity(source.len() + bodies.len() * 32);
    let mut from = 0;
    for body in bodies {
        checked.push_str(&source[from..body]);
        // Not a value that the body is given, but one that is looked at beside it: a path through the function stays one.
        checked.push_str(&format!(" {CHECK} as $__millstream | "));
        from = body;
    }
    checked.push_str(&source[from..]);
    Some(checked)
}

/// Where the bodies of functions begin: behind the colon of `def name:` and `def name(…):`.
fn find_bodies(source: &str, tokens: &[Token<&str>], bodies: &mut Vec<usize>) {
    let end = |part: &str| part.as_ptr().addr() - source.as_ptr().addr() + part.len();
    for (at, Token(text, kind)) in tokens.iter().enumerate() {
        match kind {
            Tok::Word if *text == "def" => {
                let colon = match &tokens[at + 1..] {
                    [Token(_, Tok::Word), Token(colon @ ":", Tok::Sym), ..]
                    | [Token(_, Tok::Word), Token(_, Tok::Block(_)), Token(colon @ ":", Tok::Sym), ..] => {
                        colon
                    }
                    _ => continue,
                };
                bodies.push(end(colon));
            }
            Tok::Block(inner) => find_bodies(source, inner, bodies),
            Tok::Str(parts) => {
                for part in parts {
                    if let StrPart::Term(Token(_, Tok::Block(inner))) = part {
                        find_bodies(source, inner, bodies);
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expr::Mapping;

    #[test]
    fn whatever_never_ends_is_ended() {
        for program in [
            "def f: f; f",
            "[range(1000000000000)]",
            "[range(1000000000000)?] | length",
            "[range(0; 1; 0)] | length",
            "last(range(1; infinite))",
            "until(false; .)",
            "last(while(true; .))",
            "last(repeat(1))",
            "first(repeat(empty))",
            "last(recurse(.))",
            "last(recurse(.; true))",
            "reduce range(1000000000000) as $i (0; .)",
            "[path(recurse(.))] | length",
            "[limit(1000000000000; repeat(.))]",
            "[0, 1] | last(combinations(60))",
            "[range(60) | [0, 1]] | last(combinations)",
        ] {
            let error = Mapping::compile(program)
                .expect(program)
                .apply(Val::from(0_isize))
                .expect_err("it never ends");
            let error = error.to_string();
            assert!(error.contains("more than two million steps"), "{program}: {error}");
        }
    }

    #[test]
    fn nothing_catches_the_end_of_what_never_ends() {
        for program in [
            "def f: try f catch f; f",
            "def f: (f?) // f; f",
            "[range(infinite)?] // 1",
            "try last(repeat(1)) catch 1",
        ] {
            let error =
                Mapping::compile(program).expect(program).apply(Val::from(0_isize)).expect_err(program);
            assert!(error.to_string().contains("must end sooner"), "{program}: {error}");
        }
    }

    #[test]
    fn every_function_is_checked_wherever_it_is() {
        let source =
            r#"def a: 1; def b(f; $x): def c: {"def d: x": 2}; c; "\(def e: 3; e)" | [def g: ":"; g], .def"#;
        let check = format!(" {CHECK} as $__millstream | ");
        let checked = checked(source).expect("it has functions");
        assert_eq!(checked.matches(&check).count(), 5, "{checked}");
        assert_eq!(checked.replace(&check, ""), source);
        for function in ["def a:", "def b(f; $x):", "def c:", "def e:", "def g:"] {
            assert!(checked.contains(&format!("{function}{check}")), "{checked}");
        }
        assert_eq!(super::checked("{def: 1, a: .def, \"x\": \"def y: 1;\"}"), None);
    }

    #[test]
    fn texts_and_comments_do_not_nest_and_hide_nothing() {
        let many = |part: &str| part.repeat(NESTING + 1);
        for deep in [
            many("["),
            many("{\"a\":"),
            many("[\"]\","),
            many("[#]\n"),
            many("[\"\\\"]\","),
            many("[{\"\\\\\":"),
        ] {
            assert!(nests_too_deep(deep.as_bytes()), "{deep}");
        }
        for flat in [many("[]"), many("\"[\" "), many("#[\n"), many("\"\\\"[\""), "[".repeat(NESTING)] {
            assert!(!nests_too_deep(flat.as_bytes()), "{flat}");
        }
    }
}
