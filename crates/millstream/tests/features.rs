//! What the front page says of features is so.

use std::collections::BTreeSet;

/// The words between backticks in some text that could be names of features.
fn named(text: &str) -> BTreeSet<&str> {
    let plain = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    text.split('`').skip(1).step_by(2).filter(plain).collect()
}

#[test]
fn every_feature_is_documented_and_every_documented_one_is_there() {
    let manifest = include_str!("../Cargo.toml");
    let (_, features) = manifest.split_once("[features]\n").expect("a section");
    let (features, _) = features.split_once("\n\n").expect("another section");
    let there: BTreeSet<&str> = features
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name)
        .filter(|name| *name != "default")
        .collect();
    let page = include_str!("../src/lib.rs");
    let (_, section) = page.split_once("//! # Features\n").expect("a section");
    let (section, _) = section.split_once("\n\n").expect("an end of the page");
    let mut documented = named(section);
    // The binary, and a module.
    documented.retain(|name| !["millstream", "codec"].contains(name));
    assert_eq!(documented, there);
}
