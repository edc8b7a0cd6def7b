//! Topic patterns: words between dots, `*` for one word, `#` for any number of words.

/// Whether `key` matches `pattern`.
///
/// Quadratic at worst (a table of one row over the key's words), whatever the pattern: several `#` do not make it
/// exponential.
pub(crate) fn matches(pattern: &str, key: &str) -> bool {
    let words: Vec<&str> = if key.is_empty() { Vec::new() } else { key.split('.').collect() };
    // reach[i]: the pattern so far can match exactly the first i words.
    let mut reach = vec![false; words.len() + 1];
    reach[0] = true;
    for part in pattern.split('.').filter(|_| !pattern.is_empty()) {
        if part == "#" {
            let first = reach.iter().position(|reached| *reached);
            if let Some(first) = first {
                reach[first..].fill(true);
            }
            continue;
        }
        for i in (0..words.len()).rev() {
            reach[i + 1] = reach[i] && (part == "*" || part == words[i]);
        }
        reach[0] = false;
    }
    reach[words.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_stars_and_hashes() {
        for (pattern, key, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("a.#", "a", true),
            ("a.#", "a.b.c", true),
            ("#", "", true),
            ("#", "a.b", true),
            ("#.b", "a.a.b", true),
            ("#.b.#", "a.b.c", true),
            ("*.#.c", "a.b.b.c", true),
            ("*.#.c", "c", false),
            ("", "", true),
            ("", "a", false),
            ("*", "", false),
        ] {
            assert_eq!(matches(pattern, key), expected, "{pattern} {key}");
        }
    }

    #[test]
    fn a_hostile_pattern_is_still_quick() {
        let pattern = vec!["#.a"; 60].join(".");
        let key = vec!["a"; 120].join(".") + ".b";
        assert!(!matches(&pattern, &key));
    }

    /// The definition, written down plainly.
    fn slow(pattern: &[&str], words: &[&str]) -> bool {
        match pattern.split_first() {
            None => words.is_empty(),
            Some((&"#", rest)) => (0..=words.len()).any(|skip| slow(rest, &words[skip..])),
            Some((&part, rest)) => words
                .split_first()
                .is_some_and(|(word, more)| (part == "*" || part == *word) && slow(rest, more)),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(
            pattern in proptest::collection::vec(prop_oneof!["a", "b", r"\*", "#"], 1..5),
            key in proptest::collection::vec(prop_oneof!["a", "b"], 1..6),
        ) {
            let parts: Vec<&str> = pattern.iter().map(String::as_str).collect();
            let words: Vec<&str> = key.iter().map(String::as_str).collect();
            prop_assert_eq!(matches(&pattern.join("."), &key.join(".")), slow(&parts, &words));
        }
    }
}
