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
fn maps_may_go_round_as_often_as_an_item_needs() {
    for (program, gives) in [
        ("[range(3)]", "[0,1,2]"),
        ("[range(2; 9; 3), range(1; 3)]", "[2,5,8,1,2]"),
        ("[range(0, 1; 3, 4)]", "[0,1,2,0,1,2,3,1,2,1,2,3]"),
        ("[limit(3; repeat(1, 2))]", "[1,2,1]"),
        ("[10 | recurse(if . > 7 then . - 1 else empty end)]", "[10,9,8,7]"),
        ("[2 | recurse(. * .; . < 100)]", "[2,4,16]"),
        ("[1 | while(. < 10; . * 2)]", "[1,2,4,8]"),
        ("1 | until(. > 100; . * 2)", "128"),
        ("[[1, 2], [3]] | [combinations]", "[[1,3],[2,3]]"),
        ("[0, 1] | [combinations(2)] | length", "4"),
        ("[[[1], 2] | path(recurse(.[]?))]", "[[],[0],[0,0],[1]]"),
        ("[[1, [2]] | recurse(.[]?) |= .] | length", "1"),
        ("reduce range(300000) as $i (0; . + 1)", "300000"),
        ("def f: if . > 299999 then . else . + 1 | f end; 0 | f", "300000"),
    ] {
        assert_eq!(mapped(program, "0"), Ok(Some(gives.to_owned())), "{program}");
    }
}

#[test]
fn a_map_that_never_ends_fails_its_item() {
    let error = mapped("[range(1000000000000)] | length", "0").expect_err("it never ends");
    assert!(error.contains("more than two million steps"), "{error}");
    assert_eq!(mapped("halt", "0").expect_err("no value"), "the program halted; `error` fails one item");
}

#[test]
fn cel_errors_name_the_part_and_the_field() {
    for (expression, item, told) in [
        ("item.x > 1", "{}", "the item has no field `x`; `has(item.x)` asks for it"),
        ("item.o.x > 1", r#"{"o":{}}"#, "`item.o` has no field `x`; `has(item.o.x)` asks for it"),
        (
            "item.a == 1 && item.x > 1",
            r#"{"a":1,"x":"NA"}"#,
            "`item.x > 1`: `item.x` is the text \"NA\", `1` is a whole number; `double(item.x)` makes a number of a text that is one",
        ),
        (
            "item.x > 1",
            r#"{"x":null}"#,
            "`item.x > 1`: `item.x` is null, `1` is a whole number; `item.x != null && …` asks first",
        ),
        ("item.x", r#"{"x":1}"#, "`item.x` is the whole number 1 instead of true or false"),
        ("item.x > 1", "7", "`item` is the whole number 7, which has no fields"),
        ("1 / item.x > 1", r#"{"x":0}"#, "`1 / item.x` divides by zero"),
        ("1 % item.x > 1", r#"{"x":0}"#, "`1 % item.x` asks for the remainder of a division by zero"),
        (
            "item.x + 1 > 1",
            r#"{"x":9223372036854775807}"#,
            "`item.x + 1`: the result is larger than a whole number can be",
        ),
        ("item.b ? item.x > 1 : item.y > 1", r#"{"b":false,"y":1}"#, ""),
        (
            "item.b ? item.x > 1 : item.y > 1",
            r#"{"b":true,"y":1}"#,
            "the item has no field `x`; `has(item.x)` asks for it",
        ),
        (
            "item.s.startsWith(item.n)",
            r#"{"s":"a","n":1}"#,
            "`item.s.startsWith(item.n)`: `item.s` is the text \"a\", `item.n` is the whole number 1",
        ),
        ("item.l[5] == 1", r#"{"l":[1]}"#, "`item.l[5]`: the list has no such place"),
        ("!item.x", r#"{"x":"a"}"#, "`!item.x`: `item.x` is the text \"a\""),
    ] {
        let error = holds(expression, item).err().unwrap_or_default();
        assert_eq!(error, told, "{expression} of {item}");
    }
    let error = holds("item.s.matches(item.re)", r#"{"s":"a","re":"("}"#).expect_err("no pattern");
    assert!(error.starts_with("`item.s.matches(item.re)`: ") && !error.contains('\n'), "{error}");
}

#[test]
fn errors_show_a_part_of_a_long_item() {
    let long = format!("{{\"x\":{:?}}}", "x".repeat(100_000));
    for error in [
        holds("int(item.x) > 1", &long).expect_err("no number"),
        holds("{item.x: 1}[1.5] > 1", &long).expect_err("no key"),
        mapped(".x | tonumber", &long).expect_err("no number"),
        mapped("error(.x)", &long).expect_err("it is one"),
    ] {
        assert!(error.len() < 2000, "{} bytes", error.len());
    }
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

#[test]
fn what_nests_or_calls_too_deeply_is_the_items_error() {
    let deep = |levels: usize| format!("\"{}{}\"", "[".repeat(levels), "]".repeat(levels));
    for program in ["fromjson", "tonumber", "[.[0:]] | .[0] | fromjson"] {
        let error = mapped(program, &deep(100_000)).expect_err(program);
        assert!(error.contains("nests deeper than 128 levels"), "{error}");
    }
    for program in ["reduce range(200000) as $i (.; [.])", "reduce range(200000) as $i (.; {a: .})"] {
        let error = mapped(program, "1").expect_err(program);
        assert!(error.contains("nests deeper than 512 levels"), "{error}");
    }
    assert!(mapped("reduce range(512) as $i (.; [.])", "1").is_ok());
    assert_eq!(mapped("fromjson | flatten", &deep(128)), Ok(Some("[]".to_owned())));
    for program in [
        "def f: 1 + f; f",
        "def f($n): 1 + f($n + 1); {a: f(0)}",
        "def f(g): [f(g | g)]; f(.)",
        "def f: def g: [f]; g | .; f",
        "def f: [.[] | f] + [[f]]; \"\\(f)\"",
    ] {
        let error = mapped(program, "[]").expect_err(program);
        assert!(error.contains("call each other too deeply"), "{program}: {error}");
    }
}

#[test]
fn functions_recur_update_and_run_on_as_in_jq() {
    for (program, item, expected) in [
        ("def f: if . > 100000 then . else . + 1 | f end; f", "0", "100001"),
        ("def tree: if type == \"array\" then map(tree) | add else . end; tree", "[1,[2,[3,[4]]]]", "10"),
        ("def at: .a.b; at |= . + 1 | at", "{\"a\":{\"b\":1}}", "2"),
        ("def at(f): f; [paths] | length as $n | at(.[0]) |= $n", "[[1]]", "[2,[0,0]]"),
        ("def f($x; g): $x + g; def g: 2; f(1; g) + (def h: 3; h)", "null", "6"),
        ("[1, \"2\", \"[3]\"] | map(try tonumber catch .) | .[1:]", "null", "[2,\"cannot parse as number\"]"),
        (r#"[1,null,true,"a \"b\"","c"] | @csv"#, "null", r#""1,,true,\"a \"\"b\"\"\",\"c\"""#),
        (r#"[1,"a\tb\\"] | @tsv"#, "null", r#""1\ta\\tb\\\\""#),
        ("[IN(1, 2), IN(3), IN(2, 3; 3, 4), (toarray | toarray)]", "2", "[true,false,true,[2]]"),
        (r#"INDEX(.id) | .["7"].n"#, r#"[{"id":6,"n":1},{"id":7,"n":2}]"#, "2"),
        (r#"[("aba" | trimstr("a")), [leaf_paths]]"#, "[[null]]", r#"["b",[[0,0]]]"#),
        ("[\"1 2 [3]\" | fromjson]", "null", "[1,2,[3]]"),
    ] {
        assert_eq!(mapped(program, item), Ok(Some(expected.to_owned())), "{program}");
    }
    let error = mapped("fromjson", "\"{a\"").expect_err("no JSON");
    assert!(error.starts_with("cannot parse {a as JSON") || error.contains("as JSON"), "{error}");
}

#[test]
fn equal_objects_and_lists_are_equal_wherever_they_stand() {
    let item = r#"{"o":{"a":1},"p":{"a":1.0},"q":{"a":2},"l":[1,2],"m":[1,2],"k":[{"a":1}],"j":[{"a":1}],
        "n":{"a":{"b":[{}]}},"n2":{"a":{"b":[{}]}},"n3":{"a":{"b":[{"c":0}]}}}"#;
    let item = parse_json(item.as_bytes()).expect("JSON");
    let equal = [
        ("item.o", "{'a':1}"),
        ("item.o", "item.p"),
        ("item.l", "item.m"),
        ("item.l", "[1,2]"),
        ("item.k", "[{'a':1}]"),
        ("item.k", "item.j"),
        ("item.k", "[item.o]"),
        ("item.n", "item.n2"),
        ("item.n", "{'a':{'b':[{}]}}"),
        ("item", "item"),
        ("{'i':item}", "{'i':item}"),
        ("item.l", "item.l.map(x, x)"),
        ("item.k", "item.j.filter(x, x == item.o)"),
        ("item.l + item.m", "[1,2,1,2]"),
        ("size(item.l)", "2"),
        ("item.k[0]", "item.o"),
        ("item.k[0].a", "1"),
        ("item['o']", "item.p"),
    ];
    let different = [("item.o", "item.q"), ("item.l", "item.k"), ("item.n", "item.n3"), ("item.o", "item.l")];
    for (pairs, expected) in [(&equal[..], true), (&different[..], false)] {
        for (a, b) in pairs {
            for (a, b) in [(a, b), (b, a)] {
                for (source, gives) in [(format!("{a} == {b}"), expected), (format!("{a} != {b}"), !expected)]
                {
                    let condition = Condition::compile(&source).expect("compiles");
                    assert_eq!(condition.holds(&item).ok(), Some(gives), "{source}");
                }
            }
        }
    }
    for source in [
        "item.o in item.k",
        "{'a':1} in item.k",
        "item.o in [{'a':1}]",
        "item.o in [item.p]",
        "item.k.exists(x, x == item.o)",
        "item.k.exists(x, item.o == x)",
        "item.k.all(x, x.a == 1)",
        "item.n.a.b.exists(x, x == {})",
        "1 in item.l",
        "!(3 in item.l)",
        "item.exists(key, item.o == {'a':1} && key == 'o')",
        "[item.o].exists(x, x == item.o)",
    ] {
        let condition = Condition::compile(source).expect("compiles");
        assert_eq!(condition.holds(&item).ok(), Some(true), "{source}");
    }
}
