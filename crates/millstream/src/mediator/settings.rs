//! What stands around requests, from a file and the environment.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use millstream_mediator::Timeout;
use millstream_mediator::presets::{
    BreakerPreset, Environment, Profile, ResourcePreset, RetryPreset, Service,
};
use millstream_pipeline::{Problems, SettingsFile, duration, nearest, show_duration};

/// A [`Profile`] in words: which kind of service it is and where it runs, and what differs from that. Read from a YAML file and the
/// environment, whose word counts more; what nobody says is the profile's own. It prints itself as a file that sets the same.
///
/// | key | variable | value |
/// |---|---|---|
/// | `service` | `MEDIATOR_SERVICE` | `web` (the default), `microservice`, `background` |
/// | `environment` | `MEDIATOR_ENVIRONMENT` | `development`, `staging`, `production` (the default) |
/// | `slow` | `MEDIATOR_SLOW` | a call that takes longer is warned of: `200ms` |
/// | `timeout` | `MEDIATOR_TIMEOUT` | how long a request may take: `30s` |
/// | `timeouts.NAME` | | the same for requests of one name; a mediator without a handler for such is not built |
/// | `retry` | `MEDIATOR_RETRY` | a [`RetryPreset`] |
/// | `breaker` | `MEDIATOR_BREAKER` | a [`BreakerPreset`] |
/// | `memory` | `MEDIATOR_MEMORY` | a [`ResourcePreset`] |
///
/// ```
/// use millstream::mediator::{Mediator, Request, Settings, process_memory};
///
/// struct Ping;
/// impl Request for Ping { type Response = (); }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("mediator.yaml");
/// # std::fs::write(&path, "service: microservice\ntimeouts:\n  Ping: 1s\n")?;
/// let environment = |name: &str| (name == "MEDIATOR_TIMEOUT").then(|| "5s".to_owned()); // or `std::env::var(name).ok()`
/// let settings = Settings::read(Some(&path), environment)?;
/// let mediator = Mediator::builder()
///     .profile(&settings.profile(process_memory))
///     .request(async |_: Ping| Ok::<_, millstream::mediator::Error>(()))
///     .build()?;
/// assert!(mediator.describe().to_string().contains("then 3 probes > timeout 5s, Ping 1s > retry"));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    service: Service,
    environment: Environment,
    slow: Option<Duration>,
    timeout: Option<Duration>,
    timeouts: BTreeMap<String, Duration>,
    retry: Option<RetryPreset>,
    breaker: Option<BreakerPreset>,
    memory: Option<ResourcePreset>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            service: Service::Web,
            environment: Environment::Production,
            slow: None,
            timeout: None,
            timeouts: BTreeMap::new(),
            retry: None,
            breaker: None,
            memory: None,
        }
    }
}

/// What can be said, in the order in which it is printed.
const KEYS: [&str; 8] =
    ["service", "environment", "slow", "timeout", "timeouts", "retry", "breaker", "memory"];

impl Settings {
    /// Those of a file, if there is one, and of an environment: what `environment` says of a variable's name.
    ///
    /// # Errors
    /// Everything that is wrong in the file, each with its place and a remedy; or the first variable that has no meaning.
    pub fn read(
        file: Option<&Path>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingsError> {
        let mut settings = Settings::default();
        if let Some(path) = file {
            settings.file(SettingsFile::open(path)?)?;
        }
        for key in KEYS.into_iter().filter(|key| *key != "timeouts") {
            let name = format!("MEDIATOR_{}", key.to_uppercase());
            if let Some(value) = environment(&name) {
                settings.set(key, &value).map_err(|Refused { message, remedy }| {
                    SettingsError(format!("environment variable {name}: {message}\n  help: {remedy}"))
                })?;
            }
        }
        Ok(settings)
    }

    fn file(&mut self, mut file: SettingsFile) -> Result<(), Problems> {
        for (at, entry) in file.entries().to_vec().into_iter().enumerate() {
            if let Err(Refused { message, remedy }) = self.set(&entry.key, &entry.value) {
                file.refuse(at, message, remedy);
            }
        }
        file.finish()
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), Refused> {
        if let Some(name) = key.strip_prefix("timeouts.") {
            self.timeouts.insert(name.to_owned(), time(key, value)?);
            return Ok(());
        }
        match key {
            "service" => self.service = one_of(key, value, &SERVICES)?,
            "environment" => self.environment = one_of(key, value, &ENVIRONMENTS)?,
            "slow" => self.slow = Some(time(key, value)?),
            "timeout" => self.timeout = Some(time(key, value)?),
            "timeouts" => {
                let (message, remedy) = ("`timeouts` is a map", "name requests below it: `PriceOf: 1s`");
                return Err(Refused { message: message.into(), remedy: remedy.into() });
            }
            "retry" => self.retry = Some(one_of(key, value, &named(RetryPreset::ALL))?),
            "breaker" => self.breaker = Some(one_of(key, value, &named(BreakerPreset::ALL))?),
            "memory" => self.memory = Some(one_of(key, value, &named(ResourcePreset::ALL))?),
            _ => {
                let remedy = match nearest(key, KEYS) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("there are {}", KEYS.join(", ")),
                };
                return Err(Refused { message: format!("unknown key `{key}`"), remedy });
            }
        }
        Ok(())
    }

    /// What stands around requests by these settings; admission goes by what `probe` finds, as of [`Profile::new`].
    pub fn profile(&self, probe: impl Fn() -> Option<u64> + Send + Sync + 'static) -> Profile {
        let Settings { service, environment, slow, timeout, timeouts, retry, breaker, memory } = self;
        let memory = memory.unwrap_or_else(|| ResourcePreset::of(*service, *environment));
        let mut profile = Profile::within(*service, *environment, memory.memory_probed(probe));
        let limits = Timeout::new(timeout.unwrap_or(Profile::TIMEOUT));
        let limits =
            timeouts.iter().fold(limits, |limits, (name, limit)| limits.limit_of(name.clone(), *limit));
        profile = profile.timeout(limits);
        if let Some(slow) = slow {
            profile = profile.slow(*slow);
        }
        if let Some(retry) = retry {
            profile = profile.retry(*retry);
        }
        if let Some(breaker) = breaker {
            profile = profile.breaker(*breaker);
        }
        profile
    }
}

/// What is wrong with a value, and what to do.
struct Refused {
    message: String,
    remedy: String,
}

const SERVICES: [(Cow<'static, str>, Service); 3] = [
    (Cow::Borrowed("web"), Service::Web),
    (Cow::Borrowed("microservice"), Service::Microservice),
    (Cow::Borrowed("background"), Service::Background),
];

const ENVIRONMENTS: [(Cow<'static, str>, Environment); 3] = [
    (Cow::Borrowed("development"), Environment::Development),
    (Cow::Borrowed("staging"), Environment::Staging),
    (Cow::Borrowed("production"), Environment::Production),
];

/// Presets by the names that they have in Rust.
fn named<P: Copy + fmt::Debug, const N: usize>(presets: [P; N]) -> Vec<(Cow<'static, str>, P)> {
    presets.map(|preset| (Cow::Owned(format!("{preset:?}")), preset)).into()
}

fn one_of<T: Copy>(key: &str, value: &str, known: &[(Cow<'static, str>, T)]) -> Result<T, Refused> {
    let found = known.iter().find(|(name, _)| name == value);
    found.map(|(_, found)| *found).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| &**name).collect();
        let remedy = format!("it is one of {}", names.join(", "));
        Refused { message: format!("`{key}` cannot be `{value}`"), remedy }
    })
}

fn time(key: &str, value: &str) -> Result<Duration, Refused> {
    duration(value).filter(|time| !time.is_zero()).ok_or_else(|| {
        let remedy = "write a time above zero with its unit, such as `500ms` or `30s`".to_owned();
        Refused { message: format!("`{key}` cannot be `{value}`"), remedy }
    })
}

fn name_of<'a, T: PartialEq>(known: &'a [(Cow<'static, str>, T)], value: T) -> &'a str {
    known.iter().find(|(_, known)| *known == value).map_or("", |(name, _)| name)
}

/// As a file that sets the same; what is left to the profile is not there.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { service, environment, slow, timeout, timeouts, retry, breaker, memory } = self;
        writeln!(f, "service: {}", name_of(&SERVICES, *service))?;
        writeln!(f, "environment: {}", name_of(&ENVIRONMENTS, *environment))?;
        for (key, time) in [("slow", slow), ("timeout", timeout)] {
            if let Some(time) = time {
                writeln!(f, "{key}: {}", show_duration(*time))?;
            }
        }
        if !timeouts.is_empty() {
            writeln!(f, "timeouts:")?;
        }
        for (name, time) in timeouts {
            writeln!(f, "  {name}: {}", show_duration(*time))?;
        }
        if let Some(retry) = retry {
            writeln!(f, "retry: {retry:?}")?;
        }
        if let Some(breaker) = breaker {
            writeln!(f, "breaker: {breaker:?}")?;
        }
        if let Some(memory) = memory {
            writeln!(f, "memory: {memory:?}")?;
        }
        Ok(())
    }
}

/// What is wrong with settings: where, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsError(String);

impl From<Problems> for SettingsError {
    fn from(problems: Problems) -> Self {
        SettingsError(problems.to_string())
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.trim_end())
    }
}

impl std::error::Error for SettingsError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, environment: &[(&str, &str)]) -> Result<Settings, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.yaml");
        std::fs::write(&path, text).unwrap();
        let environment = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
        };
        let read = Settings::read(Some(&path), environment);
        read.map_err(|error| error.to_string().replace(&path.display().to_string(), "m.yaml"))
    }

    fn profile(text: &str, environment: &[(&str, &str)]) -> String {
        of(text, environment).unwrap().profile(|| None).to_string()
    }

    #[test]
    fn every_key_changes_what_stands_around_requests() {
        let plain = profile("{}", &[]);
        assert_eq!(plain, Profile::new(Service::Web, Environment::Production, || None).to_string());
        for (key, value, line) in [
            ("service", "background", "timing, slow above 5s"),
            ("environment", "staging", "logging\n"),
            ("slow", "1s 500ms", "timing, slow above 1.5s"),
            ("timeout", "7s", "timeout 7s"),
            ("retry", "Conservative", "retry up to 3 attempts, 500ms each time"),
            ("breaker", "Sensitive", "breaker opens at 30% failures"),
            ("memory", "HighPerformance", "admission within 1024 MiB"),
        ] {
            let by_file = profile(&format!("{key}: {value}\n"), &[]);
            assert!(by_file.contains(line) && !plain.contains(line), "{key}: {by_file}");
            let variable = format!("MEDIATOR_{}", key.to_uppercase());
            assert_eq!(profile("{}", &[(&variable, value)]), by_file, "{variable}");
        }
        assert!(
            profile("timeouts:\n  Ping: 1s\n  Pong: 2s\n", &[]).contains("timeout 30s, Ping 1s, Pong 2s")
        );
    }

    #[test]
    fn the_environment_has_the_last_word_and_settings_print_themselves() {
        let text = "service: background\nenvironment: staging\nslow: 3s\ntimeout: 1m\ntimeouts:\n  Ping: 500ms\n\
                    retry: HttpApi\nbreaker: Database\nmemory: Balanced\n";
        let settings = of(text, &[("MEDIATOR_TIMEOUT", "2m"), ("MEDIATOR_SERVICE", "web")]).unwrap();
        let printed = settings.to_string();
        assert_eq!(printed, text.replace("1m", "2m").replace("background", "web"));
        assert_eq!(of(&printed, &[]).unwrap(), settings);
    }

    #[test]
    fn what_has_no_meaning_is_refused_with_its_place_and_a_remedy() {
        let text = "servce: web\ntimeout: 5\ntimeouts:\n  Ping: soon\nretry: often\nbreaker:\n";
        let problems = of(text, &[]).unwrap_err();
        for part in [
            "m.yaml:1:9: unknown key `servce`\n  1 | servce: web",
            "did you mean `service`?",
            "m.yaml:2:10: `timeout` cannot be `5`",
            "write a time above zero with its unit",
            "m.yaml:4:9: `timeouts.Ping` cannot be `soon`",
            "m.yaml:5:8: `retry` cannot be `often`",
            "it is one of Conservative, Aggressive, Database, HttpApi",
            "`breaker` cannot be ``",
        ] {
            assert!(problems.contains(part), "{part} is not in\n{problems}");
        }
        let error = of("{}", &[("MEDIATOR_MEMORY", "much")]).unwrap_err();
        assert_eq!(
            error,
            "environment variable MEDIATOR_MEMORY: `memory` cannot be `much`\n  \
             help: it is one of MemoryConstrained, HighPerformance, Balanced, Development"
        );
        assert!(of("timeouts: 5s\n", &[]).unwrap_err().contains("`timeouts` is a map"));
        let missing = Settings::read(Some(Path::new("/nowhere/m.yaml")), |_| None).unwrap_err();
        assert!(missing.to_string().contains("cannot be read"), "{missing}");
    }
}
