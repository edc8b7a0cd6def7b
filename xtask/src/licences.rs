//! The licences and sources of all dependencies, against the lists of `deny.toml`.

use serde_json::Value;

use crate::steps::command;
use crate::{Outcome, root};

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// An error that lists every dependency whose licence or source `deny.toml` does not allow.
pub(crate) fn check() -> Outcome {
    let text = std::fs::read_to_string(root().join("deny.toml")).map_err(|e| format!("deny.toml: {e}"))?;
    let allowed = allowed(&text);
    if allowed.is_empty() {
        return Err("deny.toml: no licence is allowed; `allow = [` is not where it was".into());
    }
    let metadata = command("cargo").args(["metadata", "--format-version", "1", "--locked"]).output()?;
    let metadata: Value = serde_json::from_slice(&metadata).map_err(|e| format!("cargo metadata: {e}"))?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata: no packages")?;
    let refused: Vec<String> = packages.iter().filter_map(|package| refused(package, &allowed)).collect();
    if refused.is_empty() {
        eprintln!("{} packages, all under the licences of deny.toml and from crates.io", packages.len());
        return Ok(());
    }
    Err(format!("deny.toml does not allow\n  {}", refused.join("\n  ")))
}

/// The strings of the first `allow = [ ... ]` of a deny.toml.
fn allowed(text: &str) -> Vec<String> {
    let list = text
        .split_once("\nallow = [")
        .and_then(|(_, rest)| rest.split_once(']'))
        .map_or("", |(list, _)| list);
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Why a package is refused, if it is.
fn refused(package: &Value, allowed: &[String]) -> Option<String> {
    let name = format!("{} {}", package["name"].as_str()?, package["version"].as_str()?);
    match package["source"].as_str() {
        None => return None, // a member of this workspace
        Some(REGISTRY) => {}
        Some(source) => return Some(format!("{name}: comes from {source}")),
    }
    match package["license"].as_str() {
        Some(licence) if satisfied(licence, allowed) => None,
        Some(licence) => Some(format!("{name}: licence {licence}")),
        None => Some(format!("{name}: names no licence")),
    }
}

/// Whether an SPDX expression can be met by the allowed licences: an `OR` by one side, an `AND` by both.
/// `AND` binds more tightly; the old `A/B` means `A OR B`.
fn satisfied(expression: &str, allowed: &[String]) -> bool {
    let expression = expression.trim();
    if let Some(inner) = enclosed(expression) {
        return satisfied(inner, allowed);
    }
    for (operator, enough) in [(" OR ", true), ("/", true), (" AND ", false)] {
        let parts = split_outside(expression, operator);
        if parts.len() > 1 {
            let mut met = parts.into_iter().map(|part| satisfied(part, allowed));
            return if enough { met.any(|met| met) } else { met.all(|met| met) };
        }
    }
    allowed.iter().any(|licence| licence == expression)
}

/// What a pair of brackets encloses, if it encloses the whole expression.
fn enclosed(expression: &str) -> Option<&str> {
    let inner = expression.strip_prefix('(')?.strip_suffix(')')?;
    let mut depth = 0_i32;
    for byte in inner.bytes() {
        depth += i32::from(byte == b'(') - i32::from(byte == b')');
        if depth < 0 {
            return None;
        }
    }
    Some(inner)
}

/// Splits at an operator wherever it stands outside of brackets.
fn split_outside<'a>(expression: &'a str, operator: &str) -> Vec<&'a str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_i32, 0);
    for (at, byte) in expression.bytes().enumerate() {
        depth += i32::from(byte == b'(') - i32::from(byte == b')');
        if depth == 0 && at >= start && expression[at..].starts_with(operator) {
            parts.push(&expression[start..at]);
            start = at + operator.len();
        }
    }
    parts.push(&expression[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_met_by_one_side_of_or_and_by_both_of_and() {
        let allowed = ["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned);
        for (expression, expected) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("MIT OR GPL-3.0", true),
            ("GPL-3.0/MIT", true),
            ("MIT AND GPL-3.0", false),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("(MIT OR Apache-2.0) AND (GPL-3.0)", false),
            ("(GPL-3.0) OR (MIT AND Apache-2.0)", true),
        ] {
            assert_eq!(satisfied(expression, &allowed), expected, "{expression}");
        }
    }

    #[test]
    fn the_list_is_read_from_the_file_of_this_workspace() {
        let text = std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml is readable");
        assert!(allowed(&text).contains(&"MIT".to_owned()));
    }
}
