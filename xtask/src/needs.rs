//! What the other steps need and a fresh machine may lack.

use crate::steps::command;
use crate::{Outcome, rabbitmq};

/// A command that works only where the need is met, and how a fresh machine gets it.
pub(crate) struct Need {
    pub(crate) name: &'static str,
    pub(crate) probe: &'static [&'static str],
    pub(crate) install: &'static [&'static str],
    pub(crate) root: bool,
}

/// The tests start RabbitMQ nodes of their own, a browser, and other clients, from what is installed.
const NEEDS: &[Need] = &[
    Need {
        name: "rustfmt",
        probe: &["cargo", "fmt", "--version"],
        install: &["rustup", "component", "add", "rustfmt"],
        root: false,
    },
    Need {
        name: "clippy",
        probe: &["cargo", "clippy", "--version"],
        install: &["rustup", "component", "add", "clippy"],
        root: false,
    },
    Need {
        name: "timeout",
        probe: &["timeout", "--version"],
        install: &["apt-get", "install", "--yes", "coreutils"],
        root: true,
    },
    Need {
        name: "chromium",
        probe: &["chromium", "--version"],
        install: &["apt-get", "install", "--yes", "--no-install-recommends", "chromium"],
        root: true,
    },
    Need {
        name: "curl",
        probe: &["curl", "--version"],
        install: &["apt-get", "install", "--yes", "--no-install-recommends", "curl"],
        root: true,
    },
    Need {
        name: "h2load",
        probe: &["h2load", "--version"],
        install: &["apt-get", "install", "--yes", "--no-install-recommends", "nghttp2-client"],
        root: true,
    },
    rabbitmq::NEED,
];

/// What the gateway is measured against.
pub(crate) const PROXIES: &[Need] = &[
    Need {
        name: "nginx",
        probe: &["nginx", "-v"],
        install: &["apt-get", "install", "--yes", "--no-install-recommends", "nginx-light"],
        root: true,
    },
    Need {
        name: "haproxy",
        probe: &["haproxy", "-v"],
        install: &["apt-get", "install", "--yes", "--no-install-recommends", "haproxy"],
        root: true,
    },
];

/// Installs what is missing; silent where nothing is.
pub(crate) fn install() -> Outcome {
    NEEDS.iter().try_for_each(meet)
}

/// Installs one need, if it is missing.
pub(crate) fn meet(need: &Need) -> Outcome {
    if works(need.probe) {
        return Ok(());
    }
    let sudo = (need.root && works(&["sudo", "--non-interactive", "true"])).then_some("sudo");
    let run = |words: &[&str]| {
        let words: Vec<&str> = sudo.into_iter().chain(words.iter().copied()).collect();
        command(words[0]).args(&words[1..]).run()
    };
    eprintln!("{} is missing; installing it: {}", need.name, need.install.join(" "));
    run(need.install).or_else(|problem| match need.install[0] {
        // The lists of packages may be older than the packages.
        "apt-get" => run(&["apt-get", "update"]).and_then(|()| run(need.install)),
        _ => Err(problem),
    })
}

fn works(probe: &[&str]) -> bool {
    command(probe[0]).args(&probe[1..]).output().is_ok()
}
