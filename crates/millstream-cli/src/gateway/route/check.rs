//! What is wrong with a route whose keys are each right.

use http::Method;

use super::RouteConfig;

impl RouteConfig {
    /// The entries that would have no effect, each with its key and the remedy.
    pub(crate) fn ineffective(&self) -> Vec<(usize, &'static str, &'static str)> {
        let gives = |name: &str| self.given.iter().any(|(_, key)| key.name == name);
        let (publishes, serves) = (gives("publish.queue"), gives("serve.stream") || gives("serve.queue"));
        let takes = |wanted: &[Method]| self.methods.iter().any(|method| wanted.contains(method));
        let remedy = |name: &str| match name {
            "upstreams" if publishes || serves => {
                Some("a route leads to one place; leave `upstreams` out, or make a route for each")
            }
            "serve.stream" | "serve.queue" if publishes => {
                Some("a route publishes or serves; make a route for each")
            }
            "serve.queue" if gives("serve.stream") => {
                Some("a route serves a stream or a queue; make a route for each")
            }
            "publish.max" if !publishes => Some("name the queue by `publish.queue`, or leave it out"),
            "broker" if !publishes && !serves => Some(
                "say what it is for by `publish.queue`, `serve.stream` or `serve.queue`, or leave it out",
            ),
            "methods" if publishes && !takes(&[Method::POST, Method::PUT]) => {
                Some("what is published comes by POST or PUT; name one of them, or leave it out")
            }
            "methods" if serves && !takes(&[Method::GET]) => {
                Some("what is served is asked for by GET; name it, or leave it out")
            }
            "compress" if publishes || serves => {
                Some("only answers of `upstreams` are compressed; leave it out")
            }
            _ if name == "breaker" || name.starts_with("health.") => (!gives("upstreams"))
                .then_some("it watches `upstreams`, of which this route has none; leave it out"),
            _ => None,
        };
        self.given.iter().filter_map(|(at, key)| Some((*at, key.name, remedy(key.name)?))).collect()
    }

    /// The entry that needs a broker, where there is none.
    pub(crate) fn without_broker(&self) -> Option<(usize, &'static str)> {
        let needs = |name: &str| ["publish.queue", "serve.stream", "serve.queue"].contains(&name);
        let (at, key) = self.given.iter().find(|(_, key)| needs(key.name))?;
        self.broker.is_none().then_some((*at, key.name))
    }

    /// What to do about it, if it leads nowhere.
    pub(crate) fn lacks(&self) -> Option<&'static str> {
        let leads = !self.upstreams.is_empty()
            || self.publish.is_some()
            || self.stream.is_some()
            || self.queue.is_some();
        (!leads).then_some(
            "write `upstreams: [http://host:port]`, or `broker` with `publish.queue`, `serve.stream` or `serve.queue`",
        )
    }
}
