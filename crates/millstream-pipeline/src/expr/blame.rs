//! Which part of a CEL expression failed on an item, in the words of who wrote it: the engine tells neither part nor field.

use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, operators};
use cel::common::types::{CelBool, CelDouble, CelInt, CelString, CelUInt};
use cel::common::value::Val;
use cel::{Context, ExecutionError, Value};

/// Characters of a part and of a value that are shown.
const SHOWN: usize = 80;

/// Why `expression`, which fails or gives neither true nor false, does.
pub(super) fn blame(expression: &IdedExpr, scope: &Context<'_, '_>, error: &ExecutionError) -> String {
    let mut part = expression;
    while let Some(failing) = failing_part(part, scope) {
        part = failing;
    }
    let found = Value::resolve_val(part, scope);
    let error = match &found {
        Ok(value) => return format!("{} instead of true or false", is(part, &**value)),
        // The whole may have failed for another reason, by an operator that does not look at all its parts.
        Err(found) if !std::ptr::eq(part, expression) => found,
        Err(_) => error,
    };
    let place = shown(part);
    match (error, &part.expr) {
        (ExecutionError::NoSuchKey(key), Expr::Select(select)) => match shown(&select.operand).as_str() {
            "item" => format!("the item has no field `{key}`; `has(item.{key})` asks for it"),
            of => format!("`{of}` has no field `{key}`; `has({of}.{key})` asks for it"),
        },
        (ExecutionError::NoSuchKey(key), _) => format!("`{place}`: there is no field `{key}`"),
        (ExecutionError::DivisionByZero(_), _) => format!("`{place}` divides by zero"),
        (ExecutionError::RemainderByZero(_), _) => {
            format!("`{place}` asks for the remainder of a division by zero")
        }
        (ExecutionError::Overflow(..), _) => {
            format!("`{place}`: the result is larger than a whole number can be")
        }
        (ExecutionError::IndexOutOfBounds(_), _) => format!("`{place}`: the list has no such place"),
        (ExecutionError::FunctionError { message, .. }, _) => {
            format!("`{place}`: {}", message.split_whitespace().collect::<Vec<_>>().join(" "))
        }
        (_, Expr::Select(select)) => match Value::resolve_val(&select.operand, scope) {
            Ok(value) => format!("{}, which has no fields", is(&select.operand, &*value)),
            Err(_) => format!("`{place}` fails: {error}"),
        },
        (_, Expr::Call(call)) => {
            let operands = operands(call);
            let values: Vec<_> = operands.iter().map(|of| (*of, Value::resolve_val(of, scope))).collect();
            let known: Vec<(&IdedExpr, &dyn Val)> =
                values.iter().filter_map(|(of, value)| Some((*of, &**value.as_ref().ok()?))).collect();
            let are: Vec<String> = known.iter().map(|(of, value)| is(of, *value)).collect();
            // A function may want a text.
            let remedy = if call.func_name.starts_with('_') { remedy(&known) } else { String::new() };
            format!("`{place}`: {}{remedy}", are.join(", "))
        }
        _ => format!("`{place}`: {error}"),
    }
}

/// A part of `part` that fails by itself, of those that are looked at.
fn failing_part<'e>(part: &'e IdedExpr, scope: &Context<'_, '_>) -> Option<&'e IdedExpr> {
    let fails = |part: &&IdedExpr| Value::resolve_val(part, scope).is_err();
    match &part.expr {
        Expr::Call(call) if call.func_name == operators::CONDITIONAL => {
            let [asked, yes, no] = call.args.as_slice() else { return None };
            let Ok(answer) = Value::resolve_val(asked, scope) else { return Some(asked) };
            let chosen = if *answer.downcast_ref::<CelBool>()?.inner() { yes } else { no };
            Some(chosen).filter(fails)
        }
        Expr::Call(call) => operands(call).into_iter().find(fails),
        Expr::Select(select) => Some(&*select.operand).filter(fails),
        Expr::List(list) => list.elements.iter().find(fails),
        // What is within has names that are known only there.
        _ => None,
    }
}

fn operands(call: &CallExpr) -> Vec<&IdedExpr> {
    call.target.as_deref().into_iter().chain(&call.args).collect()
}

/// What a part is, with its value where that is short.
fn is(part: &IdedExpr, value: &dyn Val) -> String {
    let name = value.get_type().name().to_owned();
    let (kind, told) = if let Some(text) = value.downcast_ref::<CelString>() {
        ("the text", Some(format!("{:?}", text.inner())))
    } else if let Some(int) = value.downcast_ref::<CelInt>() {
        ("the whole number", Some(int.inner().to_string()))
    } else if let Some(int) = value.downcast_ref::<CelUInt>() {
        ("the whole number", Some(int.inner().to_string()))
    } else if let Some(float) = value.downcast_ref::<CelDouble>() {
        ("the number", Some(format!("{:?}", float.inner())))
    } else if let Some(answer) = value.downcast_ref::<CelBool>() {
        ("", Some(answer.inner().to_string()))
    } else {
        match name.as_str() {
            "null" | "null_type" => ("null", None),
            "list" => ("a list", None),
            "map" => ("an object", None),
            other => (other, None),
        }
    };
    let what = [kind, told.map(short).unwrap_or_default().as_str()].join(" ");
    let place = shown(part);
    match part.expr {
        Expr::Literal(_) => format!("`{place}` is {}", kind.replacen("the ", "a ", 1).trim()),
        _ => format!("`{place}` is {}", what.trim()),
    }
}

/// How a text is made a number, or null asked for.
fn remedy(known: &[(&IdedExpr, &dyn Val)]) -> String {
    let type_of = |value: &dyn Val| value.get_type().name().to_owned();
    let number = known.iter().any(|(_, value)| ["int", "uint", "double"].contains(&type_of(*value).as_str()));
    for (of, value) in known {
        if matches!(of.expr, Expr::Literal(_)) {
            continue;
        }
        let of = shown(of);
        match type_of(*value).as_str() {
            "string" if number => return format!("; `double({of})` makes a number of a text that is one"),
            "null" | "null_type" => return format!("; `{of} != null && …` asks first"),
            _ => {}
        }
    }
    String::new()
}

/// A part as it is written, or nearly so.
fn shown(part: &IdedExpr) -> String {
    short(written(part))
}

fn short(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(SHOWN) {
        text.truncate(end);
        text.push('…');
    }
    text
}

fn written(part: &IdedExpr) -> String {
    let list = |parts: &[IdedExpr]| parts.iter().map(written).collect::<Vec<_>>().join(", ");
    match &part.expr {
        Expr::Ident(name) => name.clone(),
        Expr::Literal(literal) => match literal {
            LiteralValue::Boolean(value) => value.inner().to_string(),
            LiteralValue::Double(value) => format!("{:?}", value.inner()),
            LiteralValue::Int(value) => value.inner().to_string(),
            LiteralValue::UInt(value) => format!("{}u", value.inner()),
            LiteralValue::String(value) => format!("'{}'", value.inner()),
            LiteralValue::Bytes(_) => "b'…'".to_owned(),
            LiteralValue::Null => "null".to_owned(),
        },
        Expr::Select(select) => {
            let path = format!("{}.{}", operand(&select.operand), select.field);
            if select.test { format!("has({path})") } else { path }
        }
        Expr::List(elements) => format!("[{}]", list(&elements.elements)),
        Expr::Call(call) => match (call.func_name.as_str(), call.target.as_deref(), call.args.as_slice()) {
            (operators::CONDITIONAL, _, [asked, yes, no]) => {
                format!("{} ? {} : {}", operand(asked), operand(yes), operand(no))
            }
            (operators::INDEX, _, [of, at]) => format!("{}[{}]", operand(of), written(at)),
            ("@in", _, [one, all]) => format!("{} in {}", operand(one), operand(all)),
            (name, None, [one]) if name.ends_with('_') => {
                format!("{}{}", name.trim_matches('_'), operand(one))
            }
            (name, None, [left, right]) if name.starts_with('_') => {
                format!("{} {} {}", operand(left), name.trim_matches('_'), operand(right))
            }
            (name, Some(target), arguments) => format!("{}.{name}({})", operand(target), list(arguments)),
            (name, None, arguments) => format!("{name}({})", list(arguments)),
        },
        _ => "…".to_owned(),
    }
}

/// A part of another, in brackets where it is not one thing.
fn operand(part: &IdedExpr) -> String {
    match &part.expr {
        Expr::Call(call) if call.func_name.contains('_') && call.func_name != operators::INDEX => {
            format!("({})", written(part))
        }
        _ => written(part),
    }
}
