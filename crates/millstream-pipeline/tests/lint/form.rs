//! How a file is written: YAML, its keys and values, the variables in it, and how a problem shows its place.

use millstream_pipeline::Pipeline;
use proptest::prelude::*;

use super::{accepted, check, problems, with};

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    check(&with("proces: [{ map: . }]"), &[(4, 1, "unknown key `proces`", "did you mean `process`?")]);
    check(
        &with("batch: { cuont: 5 }"),
        &[(4, 10, "unknown key `cuont` in `batch`", "did you mean `count`?")],
    );
    check(&with("zzz: 1"), &[(4, 1, "unknown key `zzz`", "known here: `name`")]);
    check(
        "name: p\nsource: { fiel: { path: x.csv } }\noutput: { stdout: }",
        &[(2, 11, "unknown key `fiel`", "did you mean `file`?")],
    );
}

#[test]
fn what_stands_below_a_misspelt_key_is_checked_as_what_was_meant() {
    check(
        &with("bacth: { cuont: 5, age: soon }"),
        &[
            (4, 1, "unknown key `bacth`", "did you mean `batch`?"),
            (4, 10, "unknown key `cuont` in `batch`", "did you mean `count`?"),
            (4, 25, "`age` is `soon`", "such as `500ms`"),
        ],
    );
    // What was meant is plain only if it is not there already.
    check(
        &with("batch: { count: 5 }\nbacth: { zzz: 5 }"),
        &[(5, 1, "unknown key `bacth`", "did you mean `batch`?")],
    );
}

#[test]
fn a_variable_that_is_not_set_is_one_problem() {
    check(
        &with("batch: { count: \"${MILLSTREAM_NOT_SET}\" }"),
        &[(4, 17, "`MILLSTREAM_NOT_SET` is not set", "give a default")],
    );
    check(
        &with("batch: { by: \"${MILLSTREAM_NOT_SET}${MILLSTREAM_NOR_THIS}\" }"),
        &[(4, 14, "`MILLSTREAM_NOT_SET`", "set it"), (4, 14, "`MILLSTREAM_NOR_THIS`", "set it")],
    );
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_file() {
    let problems = problems("nmae: p\nsource: { stdin: {} }\nbatch: { count: 0, age: 5 }\noutput: nowhere");
    let lines: Vec<u32> = problems.iter().map(|problem| problem.at.line).collect();
    assert_eq!(lines, [1, 1, 2, 3, 3, 4], "{problems}");
}

#[test]
fn a_problem_shows_its_line_with_a_caret() {
    let text = problems(&with("batch: { cuont: 5 }")).to_string();
    assert!(text.contains("p.yaml:4:10: unknown key"), "{text}");
    assert!(text.contains("  4 | batch: { cuont: 5 }\n    |          ^^^^^\n  = did you mean"), "{text}");
}

#[test]
fn missing_keys_are_named_with_their_meaning() {
    check("name: p\noutput: { stdout: }", &[(1, 1, "lacks `source`", "where items come from")]);
    check(
        &with("process:\n  - filter: { keep: 'item.a > 1' }"),
        &[(5, 13, "`filter` lacks `name`", "what the report calls")],
    );
}

#[test]
fn wrong_types_and_ranges_say_what_is_expected() {
    check(&with("batch: { count: many }"), &[(4, 17, "`count` is `many`", "from 1 to 1000000")]);
    check(&with("batch: { count: 0 }"), &[(4, 17, "`count` is `0`", "from 1")]);
    check(&with("batch: { bytes: 12 }"), &[(4, 17, "not a size", "64MiB")]);
    check(&with("batch: { age: 10 }"), &[(4, 15, "not a time", "500ms")]);
    check(&with("batch: 5"), &[(4, 8, "`batch` must be a map", "`count`")]);
    check(&with("process: { map: . }"), &[(4, 10, "`process` must be a list", "`- `")]);
    check(&with("process: []"), &[(4, 10, "empty list", "leave the key out")]);
    check(&with("goals: { order: maybe }"), &[(4, 17, "`order` is `maybe`", "`true` or `false`")]);
    check(&with("on_error: ignore"), &[(4, 11, "`on_error` is `ignore`", "`fail`, `skip`")]);
    check(&with("on_error: skipp"), &[(4, 11, "`on_error` is `skipp`", "did you mean `skip`?")]);
    check(
        "name: p\nsource: { stdin: { format: cvs } }\noutput: { stdout: }",
        &[(2, 28, "`format` is `cvs`", "did you mean `csv`?")],
    );
    check(
        "name: p\nsource: { http: { listen: nowhere } }\noutput: { stdout: }",
        &[(2, 27, "not an address", "127.0.0.1:8080")],
    );
    check(&with("goals: { max_error_rate: 200% }\non_error: skip"), &[(4, 26, "not a share", "1%")]);
    check(
        "name: a b\nsource: { generate: }\noutput: { stdout: }",
        &[(1, 7, "not a name", "letters, digits")],
    );
}

#[test]
fn yaml_that_does_not_parse_has_a_place() {
    let problems = problems("name: p\nsource: { stdin: { format: ndjson }\noutput: x");
    let first = problems.iter().next().expect("a problem");
    assert!(first.message.contains("not valid YAML") && first.at.line >= 2, "{problems}");
}

#[test]
fn anchors_duplicates_and_second_documents_are_refused() {
    check(&with("batch: &b { count: 5 }"), &[(4, 8, "anchors", "write the value out")]);
    check(&with("name: q"), &[(4, 1, "`name` appears twice; the first is on line 1", "keep one")]);
    let problems = problems(&with("---\nname: q"));
    assert!(problems.to_string().contains("a second document"), "{problems}");
}

#[test]
fn expressions_are_compiled_and_point_into_themselves() {
    check(
        &with("process:\n  - map: '{a: (.b | tonumbr)}'"),
        &[(5, 21, "not valid jq: unknown filter `tonumbr`", "{name: .field")],
    );
    check(
        &with("process:\n  - map: |\n      {\n        a: .b,\n        c: (.d\n      }"),
        &[(9, 7, "not valid jq", "")],
    );
    check(
        &with("process:\n  - filter: { name: x, keep: 'itm.a > 3' }"),
        &[(5, 31, "unknown name `itm`", "item.FIELD")],
    );
    check(
        &with("process:\n  - filter: { name: x, keep: 'item.a >' }"),
        &[(5, 39, "not valid CEL", "compare")],
    );
    check(
        &with("process:\n  - filter: { name: x, keep: 'item.a + 1' }"),
        &[(5, 31, "cannot give true or false", "compare")],
    );
    check(
        &with("process:\n  - filter: { name: x, keep: 'frobnicate(item.a)' }"),
        &[(5, 31, "unknown name `frobnicate`", "")],
    );
}

#[test]
fn overrides_are_checked_like_the_file() {
    let file = tempfile::tempdir().expect("a directory");
    let path = file.path().join("p.yaml");
    std::fs::write(&path, with("process:\n  - map: .")).expect("a file");
    let open = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        Pipeline::open(&path, &sets)
    };
    let pipeline = open(&["name=other", "batch.count=7", "process.0.map='{a: 1}'"]).expect("good overrides");
    assert_eq!(pipeline.name(), "other");
    for (set, message) in [
        ("output.file.path={k}.ndjson", "quote it, as in --set 'output.file.path=\"{k}.ndjson\"'"),
        ("batch.count=0", "--set batch.count=0: `count` is `0`"),
        ("bacth.count=5", "unknown key `bacth`"),
        ("batch", "no `=`"),
        ("process.3.map=.", "not an entry of this list"),
        ("name.x=1", "below a value"),
    ] {
        let problems = open(&[set]).expect_err(set).to_string();
        assert!(problems.contains(message), "{set}: {problems}");
    }
}

#[test]
fn variables_of_the_environment_are_filled_in() {
    let problems =
        problems(&with("batch: { count: \"${MILLSTREAM_NOT_SET}\", age: \"${A B}\", bytes: \"${X\" }"))
            .to_string();
    assert!(
        problems.contains("p.yaml:4:17: the environment variable `MILLSTREAM_NOT_SET` is not set"),
        "{problems}"
    );
    assert!(problems.contains("${MILLSTREAM_NOT_SET:-…}"), "{problems}");
    assert!(problems.contains("does not name a variable"), "{problems}");
    assert!(problems.contains("without its `}`"), "{problems}");
    accepted(&with("batch:\n  count: ${MILLSTREAM_NOT_SET:-5}"));
}

#[test]
fn files_that_cannot_be_read_say_why() {
    let missing = Pipeline::open("/does/not/exist.yaml".as_ref(), &[]).expect_err("no file").to_string();
    assert!(missing.contains("/does/not/exist.yaml: cannot be read"), "{missing}");
    assert!(problems("").to_string().contains("the file is empty"));
}

const WORDS: &str = "name source buffer process batch output on_error goals file stdin queue http generate \
    memory named filter map parallel route steps keep cases else when to dead_letter retry then path rotate by \
    count x 5 1MiB 500ms true auto csv 'item.a>1' '.a|b' '{a}/{' embedded:s ${X} [ ] { } - : ,";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_text_makes_lint_panic(text in "\\PC{0,200}") {
        let _ = Pipeline::parse("p.yaml", &text);
    }

    /// Real keys in wrong places, with wrong values: what a person mistypes.
    #[test]
    fn no_rearranged_pipeline_makes_lint_panic(
        words in proptest::collection::vec(proptest::sample::select(WORDS.split(' ').collect::<Vec<_>>()), 0..60),
        breaks in proptest::collection::vec(prop_oneof![Just(": "), Just(" "), Just("\n"), Just("\n  "), Just("\n  - "), Just(", ")], 60),
    ) {
        let text: String = words.iter().zip(&breaks).flat_map(|(word, gap)| [*word, *gap]).collect();
        if let Err(problems) = Pipeline::parse("p.yaml", &text) {
            prop_assert!(problems.len() > 0);
            prop_assert!(!problems.to_string().is_empty());
        }
    }
}

#[test]
fn yaml_that_is_none_is_told_with_what_to_do_about_it() {
    check(
        "name: p\nsource: *x\noutput: { stdout: }",
        &[(2, 9, "unknown anchor", "quote a text that begins with `*`")],
    );
    check("name: p\nsource:\n\tstdin: {}\n", &[(3, 2, "tabs", "indent by spaces")]);
    check("name: p\nsource: { stdin: }}\n", &[(2, 19, "not valid YAML", "check the indentation")]);
}

#[test]
fn a_word_with_settings_is_answered_by_the_word() {
    check(
        &with("on_error: { skip: {} }"),
        &[(4, 13, "`skip` in `on_error` takes no settings", "write `on_error: skip`")],
    );
    check(&with("on_error: { fail: }"), &[(4, 13, "takes no settings", "write `on_error: fail`")]);
}

#[test]
fn a_list_that_is_not_there_begins_with_the_first_entry_that_is_set() {
    let file = tempfile::tempdir().expect("a directory");
    let path = file.path().join("p.yaml");
    std::fs::write(&path, with("")).expect("a file");
    let open = |set: &str| Pipeline::open(&path, &[set.to_owned()]);
    let pipeline = open("process.0.filter={ name: x, keep: 'item.a' }").expect("a good override");
    assert!(pipeline.graph().contains('x'), "{}", pipeline.graph());
    let problems = open("process.0.filter.keep=item.a").expect_err("no name").to_string();
    assert!(problems.contains("`filter` lacks `name`") && !problems.contains("must be a list"), "{problems}");
}

#[test]
fn a_time_that_is_too_long_is_told_the_longest() {
    check(&with("batch: { age: 99999999d }"), &[(4, 15, "not a time", "at most `213503d`")]);
    accepted(&with("batch: { age: 213503d }"));
}

#[test]
fn of_a_long_line_the_part_around_the_place_is_shown() {
    let long = "x".repeat(100_000);
    let problems = problems(&with(&format!("process: [ {{ map: '\"{long}\"' }}, {{ mapp: '{long}' }} ]")));
    let text = problems.to_string();
    assert!(text.len() < 2000, "{} bytes", text.len());
    let lines: Vec<&str> = text.lines().collect();
    let (line, carets) = (lines[1], lines[2]);
    let caret = carets.chars().position(|c| c == '^').expect("a caret");
    assert_eq!(line.chars().skip(caret).take(4).collect::<String>(), "mapp", "{text}");
}

/// The parser's own words for this are a dump of its insides.
#[test]
fn an_expression_that_nests_too_deeply_is_told_so() {
    let deep = format!("{}item.a{}", "(".repeat(150), ")".repeat(150));
    let text =
        problems(&with(&format!("process: [ {{ filter: {{ name: x, keep: '{deep}' }} }} ]"))).to_string();
    assert!(text.contains("nests more deeply") && !text.contains("ParseError"), "{text}");
}
