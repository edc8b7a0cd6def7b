//! The files that a pipeline uses: none for two purposes.

use super::model::{Draft, OutputKind, Source};
use super::problem::Findings;
use super::template::{Template, may_be_one};

/// Two writers of one file would cut each other's lines, and whichever starts first takes over what both left; who reads what he
/// writes never ends; and a position in the place of data is the end of those.
pub(super) fn files_apart(draft: &Draft, findings: &mut Findings) {
    let (read, position) = match draft.source.as_deref() {
        Some(Source::File { path, position, .. }) => (Some(path), position.as_ref()),
        _ => (None, None),
    };
    if let (Some(read), Some(position)) = (read, position)
        && may_be_one(&read.value, &position.value)
    {
        findings.add(
            position.at,
            "`position` is a file that the source reads",
            "give it a path of its own, as `state/position`",
        );
    }
    let mut seen: Vec<&Template> = Vec::new();
    for output in &draft.outputs {
        let OutputKind::File(file) = &output.kind else { continue };
        let template = &file.path.value;
        if let Some(other) = seen.iter().find(|other| other.overlaps(template)) {
            let text = if other.source() == template.source() {
                format!("another output already writes {}", template.source())
            } else {
                format!("{} can be the same file as {}, of another output", template.source(), other.source())
            };
            findings.add(file.path.at, text, "give each output its own path, as a directory of its own");
        }
        seen.push(template);
        if let Some(read) = read.filter(|read| template.may_be(&read.value)) {
            let name = read.value.file_name().unwrap_or_default().to_string_lossy();
            let text = if file.path.is_fixed() && !name.contains('*') {
                "the output is the file that the source reads".to_owned()
            } else {
                format!("{} can be a file that the source reads", template.source())
            };
            findings.add(file.path.at, text, "write to another file, as in a directory of its own");
        }
        if position.is_some_and(|position| template.may_be(&position.value)) {
            findings.add(
                file.path.at,
                format!("{} can be the file of the source's `position`", template.source()),
                "give the position a path of its own, as `state/position`",
            );
        }
    }
}
