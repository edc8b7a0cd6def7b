//! What `lint` refuses: each case names the line, the column, what is said and what to do.

mod ends;
mod form;
mod together;

use millstream_pipeline::{Pipeline, Problems};

const SOURCE: &str = "source: { stdin: { format: ndjson } }";

fn problems(yaml: &str) -> Problems {
    match Pipeline::parse("p.yaml", yaml) {
        Ok(_) => panic!("no problem was found in\n{yaml}"),
        Err(problems) => problems,
    }
}

/// Checks that `yaml` has exactly these problems: line, column, a part of the message, a part of the remedy.
fn check(yaml: &str, expected: &[(u32, u32, &str, &str)]) {
    let problems = problems(yaml);
    for (line, column, message, remedy) in expected {
        let found = problems.iter().any(|problem| {
            problem.at.line == *line
                && problem.at.column == *column
                && problem.message.contains(message)
                && problem.remedy.contains(remedy)
        });
        assert!(found, "{line}:{column} {message:?} with {remedy:?} is not among\n{problems}");
    }
    assert_eq!(problems.len(), expected.len(), "there are other problems too:\n{problems}");
}

/// A whole pipeline around some lines that begin on line 4.
fn with(lines: &str) -> String {
    format!("name: p\n{SOURCE}\noutput: {{ stdout: }}\n{lines}")
}

fn accepted(yaml: &str) {
    if let Err(problems) = Pipeline::parse("p.yaml", yaml) {
        panic!("{problems}\nin\n{yaml}");
    }
}

#[test]
fn a_good_file_has_no_problem() {
    accepted(&with(""));
    accepted(&with(
        "process:\n  - map: '{a: .b}'\n  - filter: { name: x, keep: 'item.a > 1' }\nbatch: { count: 5 }",
    ));
}
