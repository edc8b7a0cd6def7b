//! The pipeline as a picture, in Mermaid.

use crate::file::Pipeline;
use crate::file::model::{Buffer, OutputKind, Source, Step, Then};
use crate::file::units::{show_duration, show_size};
use crate::file::url;

impl Pipeline {
    /// The pipeline as a Mermaid flowchart: what flows where, what drops items, and where failed ones go.
    ///
    /// # Examples
    ///
    /// ```
    /// use millstream_pipeline::Pipeline;
    /// let pipeline = Pipeline::parse("p.yaml", "name: p\nsource: { stdin: { format: lines } }\noutput: { stdout: }")?;
    /// assert!(pipeline.graph().starts_with("flowchart LR\n"));
    /// # Ok::<(), millstream_pipeline::Problems>(())
    /// ```
    pub fn graph(&self) -> String {
        let draft = &self.draft;
        let mut chart = Chart::default();
        let mut last = chart.node("([", &self.source_label(), "])");
        match &draft.buffer.value {
            Buffer::Queue { queue, .. } => {
                let queue = chart.node("[(", &format!("queue {}", queue.name.value), ")]");
                chart.edge(&last, "", &queue);
                last = queue;
            }
            Buffer::Memory { items, bytes }
                if !matches!(draft.source.as_deref(), Some(Source::Queue { .. })) =>
            {
                let label = format!("buffer<br/>{items} items, {}", show_size(*bytes));
                let buffer = chart.node("[/", &label, "/]");
                chart.edge(&last, "", &buffer);
                last = buffer;
            }
            Buffer::Memory { .. } => {}
        }
        let mut failing = Vec::new();
        for step in &draft.steps {
            let node = chart.step(step, &mut failing);
            chart.edge(&last, "", &node);
            last = node;
        }
        let outputs = self.graph_outputs(&mut chart, &last);
        failing.extend(outputs);
        match &draft.on_error.then {
            Then::Fail => {}
            Then::Skip => {
                let skipped = chart.node("((", "skipped", "))");
                failing.iter().for_each(|from| chart.failure(from, &skipped));
            }
            Then::DeadLetter { queue, .. } => {
                let dead = chart.node("[(", &format!("dead letters {}", queue.value), ")]");
                failing.iter().for_each(|from| chart.failure(from, &dead));
            }
        }
        chart.text()
    }

    /// Draws everything behind the steps; gives the nodes whose items can fail.
    fn graph_outputs(&self, chart: &mut Chart, last: &str) -> Vec<String> {
        let draft = &self.draft;
        let batch = &draft.batch;
        let by = batch.by.as_ref().map(|by| format!(" by {}", by.value)).unwrap_or_default();
        let (bytes, age) = (show_size(batch.bytes.value), show_duration(batch.age.value));
        let label = format!("batch{by}<br/>{} items, {bytes}, {age}", batch.count.value);
        let mut failing = Vec::new();
        let route = draft.route.as_ref().map(|_| chart.node("{", "route", "}"));
        if let Some(route) = &route {
            chart.edge(last, "", route);
            failing.push(route.clone());
        }
        for output in &draft.outputs {
            let gathered = chart.node("[[", &label, "]]");
            let case = match (&route, &draft.route) {
                (Some(_), Some(rules)) if rules.otherwise.value == output.name.value => "else",
                (Some(_), Some(_)) => output.name.value.as_str(),
                _ => "",
            };
            chart.edge(route.as_deref().unwrap_or(last), case, &gathered);
            let what = match &output.kind {
                OutputKind::File(file) => format!("file {}", file.path.source()),
                OutputKind::Stdout { .. } => "stdout".to_owned(),
                OutputKind::Http(http) => format!("POST {}", url::shown(&http.url.value)),
                OutputKind::Queue(queue) => format!("queue {}", queue.name.value),
                OutputKind::Stream(stream) => format!("stream {}", stream.name.value),
            };
            let end = chart.node("([", &what, "])");
            chart.edge(&gathered, "", &end);
            failing.push(end);
        }
        if let (Some(route), Some(rules)) = (&route, &draft.route)
            && rules.otherwise.value == "drop"
        {
            let dropped = chart.node("((", "dropped", "))");
            chart.edge(route, "else", &dropped);
        }
        failing
    }

    fn source_label(&self) -> String {
        match &self.source().value {
            Source::File { path, .. } => {
                format!("file {}", path.value.strip_prefix(&self.base).unwrap_or(&path.value).display())
            }
            Source::Stdin { .. } => "stdin".to_owned(),
            Source::Http(http) => format!("http {}{}", http.listen.value, http.path.value),
            Source::Queue { queue, .. } => format!("queue {}", queue.name.value),
            Source::Stream(source) => format!("stream {}", source.stream.name.value),
            Source::Generate { .. } => "generate".to_owned(),
        }
    }
}

#[derive(Default)]
struct Chart {
    lines: Vec<String>,
    nodes: usize,
}

impl Chart {
    /// Adds a node of the shape that `open` and `close` draw; gives its name.
    fn node(&mut self, open: &str, label: &str, close: &str) -> String {
        self.nodes += 1;
        let name = format!("n{}", self.nodes);
        self.lines.push(format!("  {name}{open}\"{}\"{close}", escape(label)));
        name
    }

    fn edge(&mut self, from: &str, label: &str, to: &str) {
        let label = if label.is_empty() { String::new() } else { format!("|\"{}\"|", escape(label)) };
        self.lines.push(format!("  {from} -->{label} {to}"));
    }

    fn failure(&mut self, from: &str, to: &str) {
        self.lines.push(format!("  {from} -.->|\"error\"| {to}"));
    }

    fn step(&mut self, step: &Step, failing: &mut Vec<String>) -> String {
        let node = match step {
            Step::Filter { name, .. } => self.node("{{", &format!("filter {}", name.value), "}}"),
            Step::Map { name, .. } => {
                self.node("[", &format!("map {}", name.value).replace("map map", "map"), "]")
            }
            Step::Parallel { workers, steps, .. } => {
                let workers = workers.value.map_or("auto".to_owned(), |count| count.to_string());
                let names: Vec<String> = steps.iter().map(name_of).collect();
                self.node("[", &format!("parallel {workers}<br/>{}", names.join("<br/>")), "]")
            }
            Step::Send { request, .. } => self.node("[", &format!("send {}", request.value), "]"),
            Step::Misplaced { .. } => self.node("[", "route", "]"),
        };
        failing.push(node.clone());
        node
    }

    fn text(&self) -> String {
        format!("flowchart LR\n{}\n", self.lines.join("\n"))
    }
}

fn name_of(step: &Step) -> String {
    match step {
        Step::Filter { name, .. } | Step::Map { name, .. } | Step::Send { name, .. } => name.value.clone(),
        Step::Parallel { .. } => "parallel".to_owned(),
        Step::Misplaced { .. } => "route".to_owned(),
    }
}

/// Mermaid's own escapes; `<br/>` is ours and stays.
fn escape(label: &str) -> String {
    let escaped =
        label.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;").replace('>', "&gt;");
    escaped.replace("&lt;br/&gt;", "<br/>")
}
