//! Checks a pipeline file: `cargo run -p millstream-pipeline --example lint -- FILE`.

fn main() -> std::process::ExitCode {
    let quickstart = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/quickstart.yaml");
    let file = std::env::args().nth(1).unwrap_or_else(|| quickstart.to_owned());
    match millstream_pipeline::Pipeline::open(file.as_ref(), &[]) {
        Ok(pipeline) => {
            let bound = millstream_pipeline::show_size(pipeline.memory_bound_bytes());
            eprintln!("{}: no problems, holds at most {bound}", pipeline.name());
            std::process::ExitCode::SUCCESS
        }
        Err(problems) => {
            eprintln!("{problems}");
            std::process::ExitCode::from(2)
        }
    }
}
