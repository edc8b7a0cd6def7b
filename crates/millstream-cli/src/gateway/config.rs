//! Where settings come from: defaults, then a file, then the environment, then flags. The last word counts.

mod contradiction;

pub(super) use contradiction::TLS_PAIR;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use millstream_gateway::HealthCheck;
use millstream_pipeline::{SettingsFile, nearest};

use super::options::{Config, SETTINGS, Setting};
use super::route::{KEYS, RouteConfig};
use crate::failure::Failure;

/// A configuration, and where each setting that is not the default comes from.
pub(crate) struct Read {
    pub(crate) config: Config,
    origins: BTreeMap<&'static str, String>,
}

/// The setting of this key.
fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// All there is: a file, variables, and flags as keys and values with what the user wrote.
pub(crate) fn read(
    file: Option<&Path>,
    environment: impl Fn(&str) -> Option<String>,
    flags: &[(String, String, String)],
) -> Result<Read, Failure> {
    let mut read = Read { config: Config::default(), origins: BTreeMap::new() };
    if let Some(path) = file {
        let refused = |problems: millstream_pipeline::Problems| Failure::Refused(problems.to_string());
        let parsed = SettingsFile::open(path).map_err(refused)?;
        read.file(parsed, &path.display().to_string()).map_err(refused)?;
    }
    for setting in SETTINGS {
        let name = setting.variable();
        if let Some(value) = environment(&name) {
            read.set(setting, &value, format!("environment {name}")).map_err(|remedy| {
                let value = without_credentials(&value);
                Failure::Refused(format!("environment variable {name} is `{value}`: {remedy}"))
            })?;
        }
    }
    for (key, value, written) in flags {
        let Some(setting) = find(key) else {
            let keys = SETTINGS.iter().map(|setting| setting.key);
            let hint = nearest(key, keys).map_or(String::new(), |key| format!("; did you mean `{key}`?"));
            return Err(Failure::Refused(format!("{written}: there is no setting `{key}`{hint}")));
        };
        read.set(setting, value, format!("flag {written}"))
            .map_err(|remedy| Failure::Refused(format!("{}: {remedy}", without_credentials(written))))?;
    }
    match read.contradictions() {
        found if found.is_empty() => Ok(read),
        found => Err(Failure::Refused(found.join("\n"))),
    }
}

impl Read {
    fn set(&mut self, setting: &'static Setting, value: &str, origin: String) -> Result<(), String> {
        (setting.set)(&mut self.config, value)?;
        self.origins.insert(setting.key, origin);
        Ok(())
    }

    fn file(&mut self, mut file: SettingsFile, name: &str) -> Result<(), millstream_pipeline::Problems> {
        for (at, entry) in gathered(&file) {
            match self.entry(at, &entry.0, &entry.1, name) {
                Ok(()) => {}
                Err(Wrong::Key(problem, remedy)) => file.refuse_key(at, problem, remedy),
                Err(Wrong::Value(problem, remedy)) => file.refuse(at, problem, remedy),
            }
        }
        for (number, route) in self.config.routes.iter().enumerate() {
            for (at, key, remedy) in route.ineffective() {
                file.refuse(at, format!("`{key}` has no effect here"), remedy);
            }
            if let Some((at, key)) = route.without_broker() {
                let remedy = "name the broker by `broker`, its URL as in `embedded:DIRECTORY`";
                file.refuse(at, format!("`{key}` without a `broker`"), remedy);
            }
            if let (Some(at), Some(remedy)) = (route.entry(), route.lacks()) {
                file.refuse(at, format!("`routes.{number}` leads nowhere"), remedy);
            }
            let taken = |name: &str| {
                self.config.routes[..number]
                    .iter()
                    .any(|other| other.named().is_some_and(|(_, own)| own == name))
            };
            if let Some((at, name)) = route.named().filter(|(_, name)| taken(name)) {
                file.refuse(
                    at,
                    format!("the name `{name}` is taken already"),
                    "give each route a name of its own",
                );
            }
            let place = route.place();
            let before = self.config.routes[..number].iter().position(|before| before.place().covers(&place));
            if let (Some(at), Some(first)) = (route.entry(), before) {
                let other = self.config.routes[first].place();
                let (takes, remedy) = if other.takes_all() {
                    (
                        "all",
                        "put the route that takes every request last, or give it a host, a path or methods",
                    )
                } else if other.takes(&place) {
                    ("what it would", "put the route that takes less first")
                } else {
                    (
                        "the same path to who decodes it, or leaves out what follows a `;`, so that requests are refused",
                        "write one of the two",
                    )
                };
                file.refuse(
                    at,
                    format!("`routes.{number}` is never reached: `routes.{first}` takes {takes}"),
                    remedy,
                );
            }
        }
        file.finish()
    }

    /// Takes the entry with this number; what is wrong with it, and the remedy, if something is.
    fn entry(&mut self, at: usize, key: &str, value: &str, name: &str) -> Result<(), Wrong> {
        let shown = without_credentials(value);
        let invalid = |remedy| Wrong::Value(format!("`{key}` cannot be `{shown}`"), remedy);
        if key == "routes" {
            // A list without entries.
            let remedy = || "write a list, each entry behind a `- `".to_owned();
            return if value.is_empty() { Ok(()) } else { Err(invalid(remedy())) };
        }
        if let Some(rest) = key.strip_prefix("routes.") {
            let (number, field) = rest.split_once('.').unwrap_or((rest, ""));
            // With all as it is by itself.
            let check = HealthCheck::default();
            let (field, value) = match (field, value) {
                ("health", "") => ("health.path", check.path.as_str()),
                given => given,
            };
            let Some(key) = KEYS.iter().find(|key| key.name == field) else {
                return Err(unknown(field, KEYS.iter().map(|key| key.name)));
            };
            let number: usize = number.parse().map_err(|_| unknown(number, ["routes"]))?;
            while self.config.routes.len() <= number {
                self.config.routes.push(RouteConfig::default());
            }
            return self.config.routes[number].set(key, value, at).map_err(invalid);
        }
        let setting = find(key)
            .ok_or_else(|| unknown(key, SETTINGS.iter().map(|setting| setting.key).chain(["routes"])))?;
        self.set(setting, value, format!("file {name}")).map_err(invalid)
    }

    /// Has the settings that hold as long as the gateway runs stay as they were before; tells those that would be others, with both values.
    pub(crate) fn stay(&mut self, before: &Read) -> Vec<String> {
        let mut staying = Vec::new();
        for setting in SETTINGS.iter().filter(|setting| setting.is_fixed()) {
            let (is, asked) = ((setting.show)(&before.config), (setting.show)(&self.config));
            if is != asked {
                staying.push(format!("`{}` stays {is}, not {asked}", setting.key));
            }
            match before.origins.get(setting.key) {
                Some(origin) => self.origins.insert(setting.key, origin.clone()),
                None => self.origins.remove(setting.key),
            };
        }
        (self.config.listen, self.config.admin) = (before.config.listen, before.config.admin);
        let (settings, before) = (&mut self.config.settings, &before.config.settings);
        settings.pool = before.pool.clone();
        (settings.pool_warm, settings.pool_trim) = (before.pool_warm, before.pool_trim);
        staying
    }

    /// Every setting with its value and where that comes from, and the routes, as a file that would set the same but for passwords.
    pub(crate) fn print(&self) -> String {
        let mut out = String::new();
        for settings in SETTINGS
            .chunk_by(|one, next| section(one.key) == section(next.key) && !section(one.key).is_empty())
        {
            let section = section(settings[0].key);
            let mut lines = String::new();
            let mut any = false;
            for setting in settings {
                let value = (setting.show)(&self.config);
                // What is not set has no value that could be written.
                let unset = matches!(value.as_str(), "" | "none") && !takes_none(setting);
                any |= !unset;
                let (mark, indent) =
                    (if unset { "# " } else { "" }, if section.is_empty() { "" } else { "  " });
                let name = setting.key.rsplit('.').next().unwrap_or(setting.key);
                let origin = self.origins.get(setting.key).map_or("default", String::as_str);
                let _ = writeln!(lines, "{mark}{indent}{name}: {value}  # {origin}");
            }
            if !section.is_empty() {
                let _ = writeln!(out, "{}{section}:", if any { "" } else { "# " });
            }
            out.push_str(&lines);
        }
        if !self.config.routes.is_empty() {
            out.push_str("routes:\n");
            out.extend(self.config.routes.iter().map(RouteConfig::print));
        }
        out
    }
}

/// What stands above a key in the file.
fn section(key: &str) -> &str {
    key.split_once('.').map_or("", |(section, _)| section)
}

/// A text without the users and passwords of its URLs.
fn without_credentials(text: &str) -> String {
    let part =
        |part: &str| part.rsplit_once('@').map_or_else(|| part.to_owned(), |(_, rest)| format!("***@{rest}"));
    text.split("://").map(part).collect::<Vec<_>>().join("://")
}

/// Whether `none` is a value of this setting.
fn takes_none(setting: &Setting) -> bool {
    (setting.set)(&mut Config::default(), "none").is_ok()
        && !matches!(setting.key, "tls.certificates" | "tls.key" | "upstream_tls.authorities")
}

/// The entries with the number of each; those of a list of texts as one entry with commas.
fn gathered(file: &SettingsFile) -> Vec<(usize, (String, String))> {
    let mut out: Vec<(usize, (String, String))> = Vec::new();
    for (at, entry) in file.entries().iter().enumerate() {
        let (above, last) = entry.key.rsplit_once('.').unwrap_or(("", &entry.key));
        let in_list =
            last.bytes().all(|byte| byte.is_ascii_digit()) && above != "routes" && !above.is_empty();
        match out.last_mut() {
            Some((_, (key, value))) if in_list && key == above && last != "0" => {
                value.push(',');
                value.push_str(&entry.value);
            }
            _ => {
                let key = if in_list { above } else { &entry.key };
                out.push((at, (key.to_owned(), entry.value.clone())));
            }
        }
    }
    out
}

/// What is wrong with an entry, and the remedy.
enum Wrong {
    Key(String, String),
    Value(String, String),
}

fn unknown<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> Wrong {
    let known: Vec<&str> = known.into_iter().collect();
    let remedy = match nearest(key, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("there are {}", known.join(", ")),
    };
    Wrong::Key(format!("unknown key `{key}`"), remedy)
}

#[cfg(test)]
mod tests;
