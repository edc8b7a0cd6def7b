//! `millstream topology`: exchanges, queues and bindings from a file.

use std::path::Path;
use std::sync::Arc;

use millstream_message::{Broker, Declaration, Standing};
use millstream_pipeline::TopologyFile;

use crate::args;
use crate::broker;
use crate::failure::Failure;
use crate::out::{Out, complain};
use crate::table::{counted, table};

pub(crate) async fn topology(command: args::Topology) -> Result<(), Failure> {
    match command {
        args::Topology::Check(on) => {
            let file = read(&on.file)?;
            broker::with(&on.broker, |broker| check(broker, file)).await
        }
        args::Topology::Apply(on) => {
            let file = read(&on.file)?;
            broker::with(&on.broker, |broker| apply(broker, file)).await
        }
    }
}

fn read(file: &Path) -> Result<TopologyFile, Failure> {
    TopologyFile::open(file).map_err(|problems| Failure::Refused(problems.to_string()))
}

async fn check(broker: Arc<dyn Broker>, file: TopologyFile) -> Result<(), Failure> {
    let Counts { missing, different, unknown } = Counts::of(&shown(&*broker, &file).await?);
    let (url, file) = (broker.url(), file.file().display());
    match (missing + different, unknown) {
        (0, 0) => Ok(()),
        (0, _) => Err(Failure::Failed(format!(
            "{url} cannot tell whether it has all that {file} declares: {unknown} not known"
        ))),
        _ => Err(Failure::Failed(format!(
            "{url} does not have what {file} declares: {missing} missing, {different} declared otherwise, \
             {unknown} not known"
        ))),
    }
}

/// Shows what differs first, and changes nothing if something cannot be made so.
async fn apply(broker: Arc<dyn Broker>, file: TopologyFile) -> Result<(), Failure> {
    let Counts { missing, different, unknown } = Counts::of(&shown(&*broker, &file).await?);
    if different > 0 {
        return Err(Failure::Failed(format!(
            "{} is there, declared otherwise, and nothing was changed: change the file, or delete it once it is empty",
            counted(different, "declaration")
        )));
    }
    file.topology()
        .declare(&*broker)
        .await
        .map_err(|error| Failure::of(format_args!("cannot declare {}", file.file().display()), &error))?;
    let also = match unknown {
        0 => String::new(),
        _ => format!(", and what may have been there: {unknown}"),
    };
    complain(&format!("declared what was missing: {missing}{also}"));
    Ok(())
}

/// How many declarations stand in each of these ways.
#[derive(Default)]
struct Counts {
    missing: u64,
    different: u64,
    unknown: u64,
}

impl Counts {
    fn of(standings: &[(Declaration, Standing)]) -> Counts {
        let mut counts = Counts::default();
        for (_, standing) in standings {
            match standing {
                Standing::Missing => counts.missing += 1,
                Standing::Different(_) => counts.different += 1,
                Standing::Unknown(_) => counts.unknown += 1,
                Standing::Same => {}
            }
        }
        counts
    }
}

/// Prints how everything stands.
async fn shown(broker: &dyn Broker, file: &TopologyFile) -> Result<Vec<(Declaration, Standing)>, Failure> {
    let standings = file.topology().standings(broker).await;
    let standings =
        standings.map_err(|error| Failure::of(format_args!("cannot look at `{}`", broker.url()), &error))?;
    let rows: Vec<Vec<String>> = standings
        .iter()
        .map(|(declaration, standing)| {
            let (word, why) = match standing {
                Standing::Missing => ("missing", ""),
                Standing::Same => ("as declared", ""),
                Standing::Different(text) => ("different", text.as_str()),
                Standing::Unknown(text) => ("not known", text.as_str()),
            };
            vec![declaration.to_string(), word.to_owned(), why.to_owned()]
        })
        .collect();
    let mut out = Out::new();
    out.line(table(&["declared", "there", ""], &rows))?;
    out.flush()?;
    Ok(standings)
}
