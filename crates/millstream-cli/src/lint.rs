//! `millstream lint`, `graph` and `test`: what can be said of a pipeline file without running it.

use std::path::PathBuf;

use millstream_pipeline::{Pipeline, show_size};

use crate::args;
use crate::failure::Failure;
use crate::out::Out;
use crate::table::counted;

/// Reads and checks pipeline files. What is wrong with any of them refuses them all, and is
/// told at once: every problem of every file, with its place and its remedy.
pub(crate) fn open_all(files: &[PathBuf], settings: &[String]) -> Result<Vec<Pipeline>, Failure> {
    let (mut pipelines, mut refused) = (Vec::new(), Vec::new());
    for file in files {
        match Pipeline::open(file, settings) {
            Ok(pipeline) => pipelines.push(pipeline),
            Err(problems) => refused.push(problems.to_string()),
        }
    }
    if refused.is_empty() { Ok(pipelines) } else { Err(Failure::Refused(refused.join("\n\n"))) }
}

pub(crate) fn lint(asked: &args::Lint) -> Result<(), Failure> {
    let pipelines = open_all(&asked.files, &asked.settings)?;
    let mut out = Out::new();
    for (file, pipeline) in asked.files.iter().zip(&pipelines) {
        out.line(format!(
            "{}: no problems; the items of a run take at most {}",
            file.display(),
            show_size(pipeline.memory_bound_bytes())
        ))?;
    }
    out.flush()
}

pub(crate) fn graph(asked: &args::File) -> Result<(), Failure> {
    let pipelines = open_all(std::slice::from_ref(&asked.file), &asked.settings)?;
    let mut out = Out::new();
    for pipeline in &pipelines {
        out.line(pipeline.graph().trim_end())?;
    }
    out.flush()
}

/// Runs the offline cases; each that does not go as expected is shown with what differs.
pub(crate) fn test(asked: &args::Test) -> Result<(), Failure> {
    let pipelines = open_all(std::slice::from_ref(&asked.file), &asked.settings)?;
    let mut out = Out::new();
    let mut failed = 0;
    for pipeline in &pipelines {
        let tested = pipeline
            .test(&pipeline.cases_file())
            .map_err(|problems| Failure::Refused(problems.to_string()))?;
        for name in &tested.passed {
            out.line(format!("ok      {name}"))?;
        }
        for case in &tested.failed {
            out.line(format!("FAILED  {} ({})", case.name, case.place))?;
            for difference in &case.differences {
                out.line(format!("          {difference}"))?;
            }
        }
        failed += tested.failed.len() as u64;
    }
    out.flush()?;
    match failed {
        0 => Ok(()),
        _ => Err(Failure::Failed(format!("{} failed", counted(failed, "case")))),
    }
}
