//! Where settings come from: defaults, then a file, then the environment, then flags. The last word counts.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

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
    Ok(read)
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
        for route in &self.config.routes {
            for (at, key, remedy) in route.ineffective() {
                file.refuse(at, format!("`{key}` has no effect here"), remedy);
            }
        }
        file.finish()
    }

    /// Takes the entry with this number; what is wrong with it, and the remedy, if something is.
    fn entry(&mut self, at: usize, key: &str, value: &str, name: &str) -> Result<(), Wrong> {
        let shown = without_credentials(value);
        let invalid = |remedy| Wrong::Value(format!("`{key}` cannot be `{shown}`"), remedy);
        if let Some(rest) = key.strip_prefix("routes.") {
            let (number, field) = rest.split_once('.').unwrap_or((rest, ""));
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
mod tests {
    use super::super::route::Key;
    use super::*;

    fn of(text: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Read, String> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("g.yaml");
        std::fs::write(&path, text).expect("written");
        let flags: Vec<_> = flags
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string(), format!("--set {key}={value}")))
            .collect();
        let environment = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
        };
        read(Some(&path), environment, &flags).map_err(|failure| match failure {
            Failure::Refused(text) => text.replace(&path.display().to_string(), "g.yaml"),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn flags_have_the_last_word_then_the_environment_then_the_file() {
        let variable = ("STREAM_RESPONSE_CHUNK_SIZE", "8192");
        let file = "response:\n  chunk: 4KiB\n";
        let chunk = |read: Result<Read, String>| read.map(|read| read.config.settings.response_chunk);
        assert_eq!(chunk(of("{}", &[], &[])), Ok(512 << 10));
        assert_eq!(chunk(of(file, &[], &[])), Ok(4 << 10));
        assert_eq!(chunk(of(file, &[variable], &[])), Ok(8 << 10));
        assert_eq!(chunk(of(file, &[variable], &[("response.chunk", "16KiB")])), Ok(16 << 10));
        let text = of(file, &[variable], &[]).expect("valid").print();
        assert!(
            text.contains("response:\n  chunk: 8KiB  # environment STREAM_RESPONSE_CHUNK_SIZE\n"),
            "{text}"
        );
        assert!(text.contains("request:\n  chunk: 512KiB  # default\n"), "{text}");
    }

    #[test]
    fn every_setting_can_be_set_by_its_variable_and_its_key() {
        for setting in SETTINGS {
            let before = (setting.show)(&Config::default());
            let tried = [
                "127.0.0.1:7777",
                "allow",
                "replace",
                "all",
                "false",
                "true",
                "12345",
                "2MiB",
                "7s",
                "http://h:1",
            ];
            let changes = |value: &&str| {
                let mut config = Config::default();
                (setting.set)(&mut config, value).is_ok() && (setting.show)(&config) != before
            };
            let value =
                tried.into_iter().find(changes).unwrap_or_else(|| panic!("nothing sets {}", setting.key));
            let by_variable = of("{}", &[(&setting.variable(), value)], &[]).expect("valid");
            let by_key = of("{}", &[], &[(setting.key, value)]).expect("valid");
            assert_ne!((setting.show)(&by_variable.config), before, "{}", setting.variable());
            assert_eq!((setting.show)(&by_variable.config), (setting.show)(&by_key.config));
        }
    }

    #[test]
    fn where_a_gateway_listens_that_is_not_told_is_printed_as_it_is() {
        let text = of("{}", &[], &[]).expect("valid").print();
        assert!(text.starts_with("listen: 127.0.0.1:8080  # default\n# admin: none  # default\n"), "{text}");
    }

    #[test]
    fn a_value_that_is_refused_is_shown_without_its_password() {
        let url = "http://u:secret@a:1";
        for text in [
            of(&format!("upstream: '{url}'"), &[], &[]),
            of(&format!("routes:\n  - upstreams: ['http://a:1', '{url}']"), &[], &[]),
            of("{}", &[("MILLSTREAM_GATEWAY_UPSTREAM", url)], &[]),
            of("{}", &[], &[("upstream", url)]),
        ] {
            let text = text.err().expect("refused");
            // Below stands the file's line as it was written, where `${PASSWORD}` is still that.
            assert!(text.lines().next().is_some_and(|line| !line.contains("secret")), "{text}");
        }
    }

    #[test]
    fn what_is_printed_sets_the_same() {
        let routes = "routes:\n  - { name: \"it's\", host: '*.a', path: /x, methods: [GET, PUT], upstreams: [http://a:1], breaker: on, \
                      compress: true, health: { path: /h, period: 1s, timeout: 500ms, failures: 3, successes: 2 } }\n\
                      \x20 - { broker: 'embedded:d', publish: { queue: q, max: 2KiB } }\n  - { broker: 'memory:', serve: { stream: s } }\n\
                      \x20 - { broker: 'amqp://u:secret@h', serve: { queue: q } }\n";
        let first = of(routes, &[("MILLSTREAM_GATEWAY_TIMEOUTS_TOTAL", "3s")], &[]).expect("valid");
        assert!(
            first.print().contains("host: '*.a'") && !first.print().contains("secret"),
            "{}",
            first.print()
        );
        for key in KEYS {
            let (section, name) = key.name.split_once('.').unwrap_or(("", key.name));
            assert!(
                first.print().contains(&format!("{name}: ")) && first.print().contains(section),
                "{}",
                key.name
            );
        }
        let second = of(&first.print(), &[], &[]).expect("valid");
        assert_eq!(
            first.print().split_once("routes:").map(|p| p.1),
            second.print().split_once("routes:").map(|p| p.1)
        );
        for setting in SETTINGS {
            assert_eq!((setting.show)(&first.config), (setting.show)(&second.config), "{}", setting.key);
        }
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_place_and_its_remedy() {
        for (file, expected) in [
            ("respnse:\n  chunk: 1KiB", "g.yaml:2:3: unknown key `respnse.chunk`"),
            ("response:\n  chunk: 1KiB\n  chnk: 2", "did you mean `response.chunk`?"),
            ("response:\n  chunk: 100B", "`response.chunk` cannot be `100B`"),
            ("pool:\n  enabled: maybe", "`pool.enabled` cannot be `maybe`"),
            ("routes:\n  - pth: /a", "did you mean `path`?"),
            ("routes:\n  - path: a", "`routes.0.path` cannot be `a`"),
            ("routes:\n  - breaker: true", "g.yaml:2:14: `breaker` has no effect here"),
            ("routes:\n  - broker: 'memory:'\n    upstreams: [http://a:1]", "`broker` has no effect here"),
            (
                "routes:\n  - upstreams: [http://a:1]\n    publish: { max: 1KiB }",
                "name the queue by `publish.queue`",
            ),
            (
                "routes:\n  - broker: 'memory:'\n    serve: { queue: q }\n    health: { path: / }",
                "`health.path` has no effect",
            ),
            ("upstream: ftp://a:1", "g.yaml:1:11: `upstream` cannot be `ftp://a:1`"),
            (
                "routes:\n  - path: /\n    upstreams: [http://a:1, b]",
                "g.yaml:3:17: `routes.0.upstreams` cannot be",
            ),
            ("upstream: 'http://u:secret@a:1'", "leave out what stands before the `@`"),
            (
                "routes:\n  - broker: 'memory:'\n    serve: { queue: q, stream: s }",
                "`serve.queue` has no effect here",
            ),
            (
                "routes:\n  - broker: 'memory:'\n    serve: { queue: q }\n    compress: true",
                "`compress` has no effect here",
            ),
            (
                "routes:\n  - broker: 'memory:'\n    serve: { queue: q }\n    publish: { queue: q }",
                "publishes or serves",
            ),
            (
                "routes:\n  - broker: 'memory:'\n    serve: { queue: q }\n    upstreams: [http://a:1]",
                "leads to one place",
            ),
        ] {
            let text = of(file, &[], &[]).err().unwrap_or_else(|| panic!("{file:?} is taken"));
            assert!(text.contains(expected), "{file:?}: {text}");
        }
        let text = of("{}", &[("STREAM_REQUEST_CHUNK_SIZE", "32KB!")], &[]).err().expect("refused");
        assert!(text.contains("STREAM_REQUEST_CHUNK_SIZE is `32KB!`: write a size"), "{text}");
        let text = of("{}", &[], &[("respons.chunk", "1KiB")]).err().expect("refused");
        assert!(text.contains("did you mean `response.chunk`?"), "{text}");
    }

    #[test]
    fn the_reference_lists_every_setting_with_its_variable_and_every_key_of_routes() {
        let reference = include_str!("../../../../docs/gateway.md");
        for setting in SETTINGS {
            let row = format!("| `{}` | `{}` |", setting.key, setting.variable());
            assert!(reference.contains(&row), "docs/gateway.md lacks {row}");
        }
        for Key { name, .. } in KEYS {
            assert!(reference.contains(&format!("| `{name}` |")), "docs/gateway.md lacks `{name}`");
        }
    }

    #[test]
    fn lists_may_be_written_either_way() {
        for text in ["upstream: 'http://a:1, http://b:2'", "upstream: [http://a:1, http://b:2]"] {
            let read = of(text, &[], &[]).expect("valid");
            assert!(read.print().contains("upstream: http://a:1, http://b:2  # file "), "{}", read.print());
        }
    }
}
