//! What a builder gathers besides behaviours.

use std::any::{Any, TypeId, type_name};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::describe::Line;
use crate::handler::Notified;
use crate::json::Doors;
use crate::mediator::{Dispatch, Table};
use crate::message::{About, Kind, Notification, Request};
use crate::metrics::Metrics;
use crate::notify::{Publish, Tell, Topic};
use crate::stream::StreamDefaults;

/// Everything but the behaviours, whose type changes with each.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) requests: Table,
    pub(super) streams: Table,
    pub(super) topics: BTreeMap<Cow<'static, str>, Box<dyn Gathered>>,
    pub(super) doors: Vec<DoorMaker>,
    pub(super) declared: Vec<(TypeId, Cow<'static, str>, &'static str)>,
    pub(super) options: HashMap<TypeId, Box<dyn Any + Send + Sync>>,
    pub(super) stream_defaults: StreamDefaults,
    pub(super) lines: Vec<Line>,
    /// The full names of the types behind names, to tell two of one name apart.
    pub(super) names: HashMap<(bool, Cow<'static, str>), &'static str>,
    pub(super) publish_default: Publish,
    pub(super) detached_max: Option<usize>,
    pub(super) metrics: Metrics,
    pub(super) problems: Vec<String>,
}

pub(super) type DoorMaker = Box<dyn FnOnce(&Tables<'_>, &mut Doors) -> Result<(), String>>;

pub(super) struct Tables<'a> {
    pub(super) requests: &'a Table,
    pub(super) streams: &'a Table,
    pub(super) topics: &'a Table,
}

/// The handlers of one notification while they are gathered.
pub(super) trait Gathered {
    fn finish(self: Box<Self>, parts: &mut Parts) -> (TypeId, Box<dyn Any + Send + Sync>);
    fn as_any(&mut self) -> &mut dyn Any;
}

pub(super) struct Gathering<N: Notification> {
    pub(super) handlers: Vec<Arc<dyn Dispatch<Notified<N>>>>,
    /// Functions and types without state, which are the same handler if they are of the same type.
    pub(super) known: Vec<TypeId>,
    pub(super) publish: Option<Publish>,
    pub(super) undelivered: Option<Tell<N>>,
}

impl<N: Notification> Gathered for Gathering<N> {
    fn finish(self: Box<Self>, parts: &mut Parts) -> (TypeId, Box<dyn Any + Send + Sync>) {
        let publish = self.publish.unwrap_or(parts.publish_default);
        let name = N::name();
        if self.undelivered.is_some() && self.handlers.is_empty() {
            parts
                .problems
                .push(format!("`undelivered` of {name} has no effect without a handler; register one"));
        }
        let labels = [("type", &*name)];
        let counter = |name, help| parts.metrics.counter(name, help, &labels);
        let published = counter("mediator_notifications_total", "Notifications that were published.");
        let failed = counter(
            "mediator_notification_failures_total",
            "Calls of handlers of notifications that failed.",
        );
        let dropped = counter(
            "mediator_notifications_dropped_total",
            "Notifications that subscribers had no room for.",
        );
        let topic = Topic::new(self.handlers, publish, published, failed, dropped, self.undelivered);
        (TypeId::of::<N>(), Box::new(topic))
    }
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

impl Parts {
    pub(super) fn about<M: 'static, R: Request>(
        &self,
        name: Cow<'static, str>,
        kind: Kind,
        handler: String,
    ) -> Arc<About> {
        Arc::new(About::new::<M, R>(name, kind, handler.into(), &self.metrics))
    }

    pub(super) fn after_handlers(&mut self, behaviour: &str) {
        if let Some(Line { message, .. }) = self.lines.first() {
            self.problems.push(format!(
                "the behaviour `{behaviour}` comes after the handler of {message}, around which it cannot stand; add behaviours first"
            ));
        }
    }

    pub(super) fn cannot_work(&mut self, behaviour: &str, problem: Option<String>) {
        let problem = problem.map(|problem| format!("the behaviour `{behaviour}`: {problem}"));
        self.problems.extend(problem);
    }

    /// Whether the name is that of another type.
    pub(super) fn names_twice<M: 'static>(&mut self, request: bool, about: &About) -> bool {
        let full = type_name::<M>();
        let known = *self.names.entry((request, about.name.to_string().into())).or_insert(full);
        if known != full {
            let name = &about.name;
            self.problems.push(format!(
                "{known} and {full} are both called {name}; give one of them another by its `name` function"
            ));
        }
        known != full
    }

    pub(super) fn handled_twice<M: 'static>(&mut self, request: bool, about: &About) -> bool {
        let table = if request { &self.requests } else { &self.streams };
        let twice = table.contains_key(&TypeId::of::<M>());
        if twice {
            let first = self.lines.iter().find(|line| line.message == about.name);
            let first = first.map_or("another", |line| &*line.handler);
            self.problems.push(format!(
                "{} has two handlers, `{first}` and `{}`; remove one of them",
                about.name, about.handler
            ));
        }
        twice
    }

    /// What is said of a notification's type counts once.
    pub(super) fn given_twice<N: Notification>(&mut self, what: &str) {
        self.problems.push(format!("`{what}` of {} is given twice; remove one of them", N::name()));
    }

    pub(super) fn topic<N: Notification>(&mut self) -> &mut Gathering<N> {
        let key = type_name::<N>();
        let gathered = self.topics.entry(key.into()).or_insert_with(|| {
            Box::new(Gathering::<N> {
                handlers: Vec::new(),
                known: Vec::new(),
                publish: None,
                undelivered: None,
            })
        });
        gathered.as_any().downcast_mut().expect("two types have two full names")
    }
}
