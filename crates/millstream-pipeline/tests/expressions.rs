//! What expressions read and give, and what an item's error says.

use millstream_pipeline::{Condition, Mapping, Value, parse_json, write_json};

fn json(text: &str) -> Value {
    parse_json(text.as_bytes()).expect("JSON")
}

fn holds(expression: &str, item: &str) -> Result<bool, String> {
    Condition::compile(expression).expect(expression).holds(&json(item)).map_err(|error| error.to_string())
}

fn mapped(program: &str, item: &str) -> Result<Option<String>, String> {
    let value =
        Mapping::compile(program).expect(program).apply(json(item)).map_err(|error| error.to_string())?;
    Ok(value.map(|value| {
        let mut out = Vec::new();
        write_json(&mut out, &value);
        String::from_utf8(out).expect("UTF-8")
    }))
}

#[test]
fn cel_reads_every_kind_of_field() {
    let item = r#"{"i":5,"f":1.5,"s":"text","b":true,"n":null,"l":[1,2,{"x":3}],"o":{"p":{"q":"deep"}}}"#;
    for expression in [
        "item.i == 5 && item.i > 4.5 && item.i + 1 == 6",
        "item.f < 2 && item.f * 2.0 == 3.0",
        "item.s == 'text' && item.s.startsWith('te') && item.s.size() == 4 && 'ex' in ['ex']",
        "item.b && !has(item.missing) && has(item.o.p)",
        "item.n == null",
        "item.l.size() == 3 && item.l[2].x == 3 && 2 in item.l && item.l.exists(e, e == 1)",
        "item.o.p.q == 'deep' && item['o']['p'].q.contains('ee')",
        "'p' in item.o && item.o.all(k, k == 'p') && size(item) == 7",
        "item.o == {'p': {'q': 'deep'}}",
        "item.s.matches('^t.+t$')",
        "timestamp('2013-01-01T10:00:00Z') < timestamp('2013-01-02T00:00:00Z')",
    ] {
        assert_eq!(holds(expression, item), Ok(true), "{expression}");
    }
    assert_eq!(holds("item.i > 5", item), Ok(false));
}

#[test]
fn cel_errors_name_the_field_or_the_types() {
    assert!(holds("item.x > 1", "{}").expect_err("no field").contains("no field `x`"));
    assert!(holds("item.x > 1", r#"{"x":"NA"}"#).expect_err("types").contains("string"));
    assert!(holds("item.x", r#"{"x":1}"#).expect_err("no bool").contains("instead of true or false"));
    assert!(holds("item.x > 1", "7").is_err());
}

#[test]
fn jq_reshapes_drops_and_fails() {
    assert_eq!(
        mapped("{b: (.a | tonumber), c}", r#"{"a":"17","c":[1]}"#),
        Ok(Some(r#"{"b":17,"c":[1]}"#.to_owned()))
    );
    assert_eq!(mapped("if .a then . else empty end", "{}"), Ok(None));
    assert_eq!(mapped("error(\"cancelled\")", "{}"), Err("cancelled".to_owned()));
    assert!(mapped(".[]", "[1,2]").expect_err("two values").contains("more than one value"));
    assert!(mapped(".a | tonumber", r#"{"a":"NA"}"#).is_err());
    assert!(mapped("halt", "{}").expect_err("halt").contains("halted"));
}

#[test]
fn programs_that_do_not_compile_say_where() {
    for (program, column) in [("{a: .b", 1), (". | nope", 5), ("$x", 1), ("{", 1)] {
        let error = Mapping::compile(program).expect_err(program).to_string();
        assert!(error.contains("line 1"), "{error}");
        assert!(column >= 1);
    }
    assert!(Condition::compile("item.a >").is_err());
    assert!(Condition::compile("size(item)").is_err(), "a number is no condition");
    assert!(Condition::compile("other.a > 1").is_err(), "only `item` has a value");
}
