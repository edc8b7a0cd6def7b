//! What a configuration may say, from wherever it comes.

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
    let environment =
        |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
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
    assert!(text.contains("response:\n  chunk: 8KiB  # environment STREAM_RESPONSE_CHUNK_SIZE\n"), "{text}");
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
        let value = tried.into_iter().find(changes).unwrap_or_else(|| panic!("nothing sets {}", setting.key));
        // Some have an effect only with these.
        let others =
            "upstream: 'https://u:1'\nlimits: { client_rate: 9 }\ntls: { certificates: c.pem, key: k.pem }";
        let by_variable = of(others, &[(&setting.variable(), value)], &[]).expect("valid");
        let by_key = of(others, &[], &[(setting.key, value)]).expect("valid");
        assert_ne!((setting.show)(&by_variable.config), before, "{}", setting.variable());
        assert_eq!((setting.show)(&by_variable.config), (setting.show)(&by_key.config));
    }
}

#[test]
fn what_cannot_change_stays_with_where_it_comes_from_and_is_told_with_both_values() {
    let before = of("pool: { bytes: 2MiB }\nlimits: { streams: 3 }", &[], &[]).expect("valid");
    let file = "listen: 127.0.0.1:1\npool: { warm: 1MiB, trim: 1s }\nlimits: { streams: 4 }";
    let mut after = of(file, &[], &[("pool.scrub", "true"), ("admin", "127.0.0.1:2")]).expect("valid");
    assert_eq!(
        after.stay(&before),
        [
            "`listen` stays 127.0.0.1:8080, not 127.0.0.1:1",
            "`admin` stays none, not 127.0.0.1:2",
            "`pool.bytes` stays 2MiB, not 20MiB",
            "`pool.scrub` stays false, not true",
            "`pool.warm` stays 0B, not 1MiB",
            "`pool.trim` stays 30s, not 1s",
        ]
    );
    let (before, mut after) = (before.print(), after.print());
    after = after.replace("streams: 4", "streams: 3");
    // The directory of each has a name of its own.
    let without_origins = |text: &str| {
        text.lines().map(|line| line.split("  # ").next().map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(without_origins(&before), without_origins(&after));
    assert!(after.contains("  bytes: 2MiB  # file ") && after.contains("  trim: 30s  # default"), "{after}");
    let mut off = of("pool: { enabled: off, bytes: 20MiB }", &[], &[]).expect("valid");
    assert_eq!(off.stay(&of("{}", &[], &[]).expect("valid")), ["`pool.enabled` stays true, not false"]);
    let mut same = of("limits: { streams: 5 }", &[], &[]).expect("valid");
    assert!(same.stay(&of("{}", &[], &[]).expect("valid")).is_empty());
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
                  \x20 - { path: /p, broker: 'embedded:d', publish: { queue: q, max: 2KiB } }\n  - { path: /s, broker: 'memory:', serve: { stream: s } }\n\
                  \x20 - { broker: 'amqp://u:secret@h', serve: { queue: q } }\n";
    let first = of(routes, &[("MILLSTREAM_GATEWAY_TIMEOUTS_TOTAL", "3s")], &[]).expect("valid");
    assert!(first.print().contains("host: '*.a'") && !first.print().contains("secret"), "{}", first.print());
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
        ("upstream: [http://a, http://b, 'http://a/']", "it leads to `http://a` twice; name it once"),
        (
            "routes:\n  - broker: 'foo:'\n    serve: { queue: q }",
            "g.yaml:2:13: `routes.0.broker` cannot be `foo:`",
        ),
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
    let reference = include_str!("../../../../../docs/gateway.md");
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

#[test]
fn a_route_that_no_request_could_take_is_refused() {
    for (route, told) in [
        ("methods: [GET, put]", "write `PUT`: methods are in capitals"),
        ("host: 'a b'", "write a host without a port"),
        ("host: 'a.example:80'", "write a host without a port"),
        ("path: '/v1?x'", "write a path as requests have it"),
        ("path: '/v1/../x'", "write a path as requests have it"),
        ("path: '/v1/%2e%2e/x'", "write a path as requests have it"),
        ("path: '/a;b%2fc'", "write a path as requests have it"),
        ("path: v1", "begins with `/`"),
    ] {
        let error = of(&format!("routes:\n  - {route}\n    upstreams: [http://a:1]\n"), &[], &[]).err();
        assert!(error.as_ref().is_some_and(|text| text.contains(told)), "{route}: {error:?}");
    }
    let after = |first: &str| {
        let rest = "  - name: late\n    upstreams: [http://b:1]\n";
        of(&format!("routes:\n  - {first}\n    upstreams: [http://a:1]\n{rest}"), &[], &[])
    };
    for first in ["name: early", "path: /"] {
        let error = after(first).err().expect("it is never reached");
        let told = "`routes.1` is never reached: `routes.0` takes all";
        assert!(
            error.contains(told) && error.contains("put the route that takes every request last"),
            "{error}"
        );
    }
    for first in ["host: '*.a.example'", "path: /v1", "methods: [GET]", "host: '[::1]'"] {
        assert!(after(first).is_ok(), "{first}");
    }
    let checked = "routes:\n  - health: { path: '/ready?deep=1' }\n    upstreams: [http://a:1]\n";
    assert!(of(checked, &[], &[]).is_ok());
}

#[test]
fn what_is_wrong_with_a_route_is_told_with_its_place() {
    let two = "routes:\n  - { path: /a, name: one, upstreams: ['http://a:1'] }\n";
    for (text, told) in [
        (
            format!("{two}  - {{ path: /b, name: one, upstreams: ['http://b:1'] }}\n"),
            "g.yaml:3:23: the name `one` is taken already",
        ),
        (format!("{two}  - {{ path: /b, publish: {{ queue: q }} }}\n"), "`publish.queue` without a `broker`"),
        (format!("{two}  - {{ path: /b, serve: {{ stream: s }} }}\n"), "`serve.stream` without a `broker`"),
        (
            format!("{two}  - {{ path: /b, methods: ['G ET'], upstreams: ['http://b:1'] }}\n"),
            "`routes.1.methods` cannot be",
        ),
    ] {
        let error = of(&text, &[], &[]).err().unwrap_or_default();
        assert!(error.starts_with("g.yaml:3:") && error.contains(told), "{text}{error}");
    }
}

#[test]
fn what_has_no_effect_together_is_refused_wherever_it_comes_from() {
    let one = "upstream: http://a:1\n";
    let route = "routes:\n  - { path: /p, broker: 'memory:', publish: { queue: q, max: 2MiB } }\n";
    for (text, flag, told) in [
        (one.to_owned(), ("limits.client_burst", "5"), "`limits.client_burst` has no effect without"),
        (
            format!("{one}pool: {{ enabled: false, warm: 1MiB }}\n"),
            ("log", "off"),
            "`pool.warm` has no effect",
        ),
        (format!("{one}pool: {{ enabled: false }}\n"), ("pool.scrub", "on"), "`pool.scrub` has no effect"),
        (format!("{one}pool: {{ bytes: 1MiB, warm: 2MiB }}\n"), ("log", "off"), "`pool.warm` is more than"),
        (
            format!("{one}timeouts: {{ response: 50s }}\n"),
            ("timeouts.total", "1s"),
            "`timeouts.response` has no",
        ),
        (one.to_owned(), ("upstream_tls.authorities", "ca.pem"), "no upstream is `https:`"),
        (route.to_owned(), ("limits.request_body", "1MiB"), "`routes.0.publish.max` has no effect"),
        (one.to_owned(), ("listen", "127.0.0.1:1"), ""),
        ("upstream: http://localhost:81\n".into(), ("listen", "127.0.0.1:81"), "is the gateway itself"),
        ("upstream: http://127.0.0.1\n".into(), ("listen", "0.0.0.0:80"), "is the gateway itself"),
        ("upstream: http://127.0.0.1\n".into(), ("listen", "[::]:80"), "is the gateway itself"),
        ("upstream: http://[::1]\n".into(), ("listen", "0.0.0.0:80"), ""),
        ("upstream: https://127.0.0.1\n".into(), ("listen", "0.0.0.0:80"), ""),
        (one.to_owned(), ("tls.key", "k.pem"), "`tls.certificates` and `tls.key` go together"),
        (
            format!("{one}routes:\n  - {{ upstreams: ['http://b:1'] }}\n"),
            ("log", "off"),
            "`upstream` is never reached: `routes.0` takes all",
        ),
    ] {
        let error = of(&text, &[], &[flag]).err().unwrap_or_default();
        assert!(error.contains(told) && error.is_empty() == told.is_empty(), "{text}{flag:?}: {error:?}");
    }
}

#[test]
fn a_route_behind_one_that_takes_all_of_it_is_refused() {
    let with = |first: &str, second: &str| {
        let target = "upstreams: ['http://b:1']";
        of(&format!("routes:\n  - {{ {first}, {target} }}\n  - {{ {second}, {target} }}\n"), &[], &[]).err()
    };
    for (first, second) in [
        ("path: /a", "path: /a"),
        ("path: /a/", "path: /a/b"),
        ("host: a", "host: A"),
        ("host: '*.a'", "host: b.a"),
        ("host: '*.a'", "host: '*.b.a'"),
        ("path: /a", "path: /a, methods: [GET]"),
        ("methods: [GET, PUT]", "path: /a, methods: [GET]"),
        ("host: a.b.", "host: a.b"),
    ] {
        let error = with(first, second).unwrap_or_default();
        assert!(
            error.contains("`routes.1` is never reached: `routes.0` takes what it would"),
            "{first}; {second}: {error}"
        );
    }
    for (first, second) in
        [("path: /caf%C3%A9", "path: /caf%c3%a9"), ("path: '/p;q'", "path: /p"), ("path: /p", "path: '/p;q'")]
    {
        let error = with(first, second).unwrap_or_default();
        assert!(
            error.contains("`routes.0` takes the same path to who decodes it")
                && error.contains("write one of the two"),
            "{first}; {second}: {error}"
        );
    }
    for (first, second) in [
        ("path: /a/b", "path: /a"),
        ("path: /a", "path: /ab"),
        ("host: b.a", "host: '*.a'"),
        ("host: '*.a'", "host: a"),
        ("host: a", "path: /a"),
        ("methods: [GET]", "path: /a"),
        ("methods: [GET]", "methods: [GET, PUT]"),
    ] {
        assert_eq!(with(first, second), None, "{first}; {second}");
    }
}

#[test]
fn methods_that_can_do_nothing_are_refused() {
    let of = |route: &str| {
        of(&format!("routes:\n  - {{ path: /p, {route} }}\n"), &[], &[]).err().unwrap_or_default()
    };
    for (route, told) in [
        ("broker: 'memory:', publish: { queue: q }, methods: [GET]", "by POST or PUT"),
        ("broker: 'memory:', serve: { queue: q }, methods: [POST]", "by GET"),
        ("upstreams: ['http://a:1'], methods: [CONNECT]", "opens no tunnels"),
    ] {
        let error = of(route);
        assert!(error.contains(told), "{route}: {error}");
    }
    assert_eq!(of("broker: 'memory:', publish: { queue: q }, methods: [PUT]"), "");
}

#[test]
fn an_empty_list_of_routes_and_a_health_check_as_it_is_by_itself_are_taken() {
    assert!(of("upstream: http://a:1\nroutes: []\n", &[], &[]).expect("valid").config.routes.is_empty());
    let error = of("routes: all\n", &[], &[]).err().unwrap_or_default();
    assert!(error.contains("write a list"), "{error}");
    for health in ["{}", ""] {
        let read = of(&format!("routes:\n  - upstreams: ['http://a:1']\n    health: {health}\n"), &[], &[]);
        let text = read.expect("valid").print();
        assert!(text.contains("health: { path: '/' }"), "{text}");
    }
    assert!(of("routes:\n  - { broker: 'memory:', serve: { queue: q }, health: {} }\n", &[], &[]).is_err());
}
