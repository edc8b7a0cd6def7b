//! `send` steps: items to handlers of the program that runs the file.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millstream_pipeline::{Brokers, Handlers, Pipeline, Problems, Report};
use serde_json::{Value, json};

/// Handlers that count how many of their calls are under way at once, and the most there were.
fn handlers(most: &Arc<AtomicUsize>) -> Handlers {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), most.clone());
    Handlers::new()
        .handler("Double", move |item: Value| {
            let (running, most) = (running.clone(), most.clone());
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let n = item["n"].as_u64().unwrap_or(0);
                // The later ones are done first.
                tokio::time::sleep(Duration::from_millis(20 - n.min(20))).await;
                running.fetch_sub(1, Ordering::SeqCst);
                match n {
                    3 => Err("three is refused".into()),
                    n => Ok(json!(n * 2)),
                }
            }
        })
        .handler("Nothing", async |_| Ok(Value::Null))
}

fn refused(step: &str, handlers: &Handlers) -> Problems {
    let yaml = format!(
        "name: p\nsource: {{ generate: {{ count: 1 }} }}\noutput: {{ stdout: }}\nprocess:\n  - {step}"
    );
    Pipeline::parse_with("p.yaml", &yaml, handlers).expect_err("it is refused")
}

async fn run(dir: &Path, step: &str, handlers: &Handlers) -> (Vec<Value>, Report) {
    let path = dir.join("p.yaml");
    let output = dir.join("out.ndjson");
    let yaml = format!(
        "name: p\nsource: {{ generate: {{ count: 8 }} }}\nprocess:\n  - {step}\n\
         output: {{ file: {{ path: out.ndjson }} }}\non_error: skip\n"
    );
    std::fs::write(&path, yaml).expect("written");
    let pipeline = Pipeline::open_with(&path, &[], handlers).unwrap_or_else(|problems| panic!("{problems}"));
    let brokers = Brokers::new();
    let report = pipeline.start(&brokers).await.expect("started").join().await.expect("it ends well");
    brokers.close().await.expect("closed");
    let lines = std::fs::read_to_string(&output).unwrap_or_default(); // no item, no file
    let _ = std::fs::remove_file(output);
    (lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect(), report)
}

#[tokio::test(start_paused = true)]
async fn items_go_through_handlers_in_order_and_what_they_refuse_is_an_items_error() {
    let dir = tempfile::tempdir().expect("a directory");
    for (at_once, expected) in [(1, 1), (4, 4)] {
        let most = Arc::new(AtomicUsize::new(0));
        let step = format!("send: {{ name: double, request: Double, at_once: {at_once} }}");
        let (items, report) = run(dir.path(), &step, &handlers(&most)).await;
        assert_eq!(items, [0, 2, 4, 8, 10, 12, 14].map(Value::from));
        assert_eq!(report.dropped().values().sum::<u64>(), 1, "{report:?}");
        let failed = format!("{:?}", report.errors);
        assert!(failed.contains("double") && failed.contains("three is refused"), "{failed}");
        assert_eq!(most.load(Ordering::SeqCst), expected, "at once");
    }
    let step = "send: { request: Double, into: doubled }";
    let (items, _) = run(dir.path(), step, &handlers(&Arc::default())).await;
    assert_eq!((&items[4]["n"], &items[4]["doubled"]), (&json!(5), &json!(10)), "{items:?}");
    let (items, _) = run(dir.path(), "send: { request: Nothing }", &handlers(&Arc::default())).await;
    assert_eq!(items, vec![Value::Null; 8]);
}

fn panics(item: &Value) {
    assert!(item["n"] != 3, "three panics");
}

#[tokio::test]
async fn a_handler_that_panics_fails_its_item_like_one_that_errs() {
    let dir = tempfile::tempdir().expect("a directory");
    let handlers = Handlers::new()
        .handler("Later", async |item: Value| {
            tokio::task::yield_now().await;
            panics(&item);
            Ok(item)
        })
        .handler("AtOnce", |item: Value| {
            panics(&item);
            async { Ok(item) }
        });
    for request in ["Later", "AtOnce"] {
        let step = format!("send: {{ request: {request} }}");
        let (items, report) = run(dir.path(), &step, &handlers).await;
        // Dropped under `on_error: skip`, not dead.
        assert_eq!((items.len(), report.dropped().values().sum::<u64>()), (7, 1), "{report:?}");
        let failed = format!("{:?}", report.errors);
        assert!(failed.contains(r#"stage: "send""#) && failed.contains("panicked: three panics"), "{failed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_does_not_answer_in_time_fails_its_item_and_is_dropped() {
    let dir = tempfile::tempdir().expect("a directory");
    let handlers = Handlers::new().handler("Ask", async |item: Value| match item["n"].as_u64() {
        Some(3) => std::future::pending().await,
        Some(5) => Err("five is refused".into()),
        n => {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(json!(n))
        }
    });
    // What a step before it has failed passes, and comes to no handler.
    let steps = "map: 'if .n == 1 then error(\"one\") else . end'\n  - send: { name: ask, request: Ask, at_once: 2, timeout: 5s }";
    let began = tokio::time::Instant::now();
    let (items, report) = run(dir.path(), steps, &handlers).await;
    assert_eq!(items, [0, 2, 4, 6, 7].map(Value::from));
    assert_eq!(report.dropped()["errors"], 3, "{report:?}");
    let operators = report.stages.iter().flat_map(|stage| &stage.operators);
    let asked: Vec<u64> = operators.filter(|op| op.name == "ask").map(|op| op.failed).collect();
    assert_eq!(asked, [2], "what was late and what was refused: {report:?}");
    let failed = format!("{:?}", report.errors);
    for reason in ["the handler did not answer within 5s", "five is refused", "one"] {
        assert!(failed.contains(reason), "{failed}");
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let problems = refused("send: { request: Ask, timeout: 0s }", &handlers);
    assert!(problems.to_string().contains("timeout"), "{problems}");
}

#[tokio::test]
async fn a_response_cannot_be_put_into_what_is_no_object() {
    let dir = tempfile::tempdir().expect("a directory");
    let steps = "map: '.n'\n  - send: { request: Nothing, into: x }";
    let (items, report) = run(dir.path(), steps, &handlers(&Arc::default())).await;
    assert_eq!((items.len(), report.dropped().values().sum::<u64>()), (0, 8));
    assert!(
        format!("{:?}", report.errors).contains("cannot be put into `x`: the item is no object"),
        "{report:?}"
    );
}

#[test]
fn a_handler_that_is_not_there_is_refused_with_its_place_and_a_remedy() {
    let most = Arc::default();
    for (handlers, request, remedy) in [
        (Handlers::new(), "Double", "the `millstream` binary has none"),
        (handlers(&most), "Duoble", "did you mean `Double`?"),
        (handlers(&most), "Elsewhere", "there are Double, Nothing"),
    ] {
        let problems = refused(&format!("send: {{ request: {request} }}"), &handlers);
        let problem = problems.iter().next().expect("one");
        assert_eq!((problem.at.line, problem.at.column, problems.len()), (5, 22, 1), "{problems}");
        assert_eq!(problem.message, format!("there is no handler for `{request}`"));
        assert!(problem.remedy.contains(remedy), "{problems}");
    }
    let problems = refused("send: { request: Double, at_once: 0 }", &handlers(&most));
    assert!(problems.to_string().contains("at_once"), "{problems}");
    let problems = refused("send: { reqest: Double }", &handlers(&most));
    assert!(problems.to_string().contains("did you mean `request`?"), "{problems}");
    let problems = refused("parallel: { steps: [{ send: { request: Double } }] }", &handlers(&most));
    assert!(problems.to_string().contains("`send`"), "{problems}");
}

#[test]
fn offline_tests_refuse_what_they_cannot_call_and_the_picture_shows_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let yaml = "name: p\nsource: { generate: { count: 1 } }\nprocess: [{ send: { request: Double } }]\noutput: { stdout: }";
    let pipeline = Pipeline::parse_with("p.yaml", yaml, &handlers(&Arc::default())).expect("it is good");
    assert!(pipeline.graph().contains("send Double"), "{}", pipeline.graph());
    let cases = dir.path().join("p.test.yaml");
    std::fs::write(&cases, "cases:\n  - name: one\n    items: [{ n: 1 }]\n    output: [2]\n")
        .expect("written");
    let problems = pipeline.test(&cases).expect_err("nothing calls the handler").to_string();
    assert!(problems.contains("sends items to `Double`, and these tests call no handlers"), "{problems}");
}

#[test]
fn items_at_handlers_count_in_the_bound_of_memory() {
    let bound = |at_once: u64| {
        let yaml = format!(
            "name: p\nsource: {{ stdin: {{ format: ndjson, max_line: 1KiB }} }}\noutput: {{ stdout: }}\n\
             process: [{{ send: {{ request: Double, at_once: {at_once} }} }}]"
        );
        let pipeline = Pipeline::parse_with("p.yaml", &yaml, &handlers(&Arc::default()));
        pipeline.expect("it is good").memory_bound_bytes()
    };
    // As text twice, and as a value that is larger by the factor of long ones.
    assert_eq!(bound(8) - bound(1), 7 * (2 + 64) * 1024);
}
