//! Tables and numbers as people read them.

use crate::out::on_one_line;

/// Rows under a heading, each column as wide as its widest cell; a heading that starts with `>` is right-aligned. Control
/// characters in cells, as names from outside have them, are shown as escapes.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let right: Vec<bool> = heading.iter().map(|cell| cell.starts_with('>')).collect();
    let heading = heading.iter().map(|cell| on_one_line(cell.trim_start_matches('>')).into_owned()).collect();
    let shown = |row: &Vec<String>| row.iter().map(|cell| on_one_line(cell).into_owned()).collect();
    let all: Vec<Vec<String>> = std::iter::once(heading).chain(rows.iter().map(shown)).collect();
    let widths: Vec<usize> = (0..right.len())
        .map(|column| {
            all.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let lines = all.iter().map(|row| {
        let cells = row.iter().zip(&widths).zip(&right).map(|((cell, &width), right)| {
            if *right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A number with commas between the thousands.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number, or what stands where the broker does not tell it.
pub(crate) fn count_or_unknown(number: Option<u64>) -> String {
    number.map_or_else(|| "?".to_owned(), count)
}

/// A count and its noun, as in `1 message`, `2 messages`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["longer".to_owned(), "1,000".to_owned()]];
        assert_eq!(table(&["name", ">ready"], &rows), "name    ready\na           1\nlonger  1,000");
    }

    #[test]
    fn a_cell_is_shown_on_one_line_that_no_terminal_obeys() {
        let rows = [vec!["a\n\x1b[2J".to_owned(), "1".to_owned()]];
        assert_eq!(table(&["q\x07", ">n"], &rows), "q\\u{7}        n\na\\n\\u{1b}[2J  1");
    }

    #[test]
    fn numbers_have_commas() {
        assert_eq!(
            (count(0), count(999), count(1000), count(1_234_567)),
            ("0".into(), "999".into(), "1,000".into(), "1,234,567".into())
        );
        assert_eq!((counted(1, "row"), counted(2, "row")), ("1 row".into(), "2 rows".into()));
    }
}
