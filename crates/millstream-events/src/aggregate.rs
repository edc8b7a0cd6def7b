//! Aggregates: state that is made of events, and decisions upon it.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use millstream_message::Message;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::event::{Event, EventData, new_id};
use crate::store::{AppendError, EventStore, Expected, StoreError};
use crate::upcast::{DecodeError, Upcasters};

/// Something whose state is what has happened to it.
pub trait Aggregate: Default + Send + Sync + 'static {
    /// What its streams are called: that of id 7 is `NAME-7`. Without a `-` of its own, so that the two can be told apart.
    const NAME: &'static str;

    /// The form of its state, in snapshots: raise it when the state's type or [`apply`](Self::apply) changes, and older snapshots are not
    /// used. All events are read instead: what was truncated cannot be loaded any more ([`LoadError::Truncated`]).
    const STATE_VERSION: u32 = 0;

    /// What can happen to it.
    type Event: EventData;

    /// The state after an event. Events have happened: this cannot refuse one.
    fn apply(&mut self, event: &Self::Event);
}

/// Decides upon aggregates, and keeps what was decided in an event store.
///
/// ```
/// use millstream_events::{Aggregate, Aggregates, EventData, EventStore, ExecuteError};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, Default, Serialize, Deserialize)]
/// struct Account { balance: u64 }
///
/// #[derive(Serialize, Deserialize)]
/// enum Happened { Paid(u64), Drawn(u64) }
///
/// impl EventData for Happened {
///     const TYPES: &'static [&'static str] = &["paid", "drawn"];
///     fn event_type(&self) -> &'static str {
///         match self { Happened::Paid(_) => "paid", Happened::Drawn(_) => "drawn" }
///     }
/// }
///
/// impl Aggregate for Account {
///     const NAME: &'static str = "account";
///     type Event = Happened;
///     fn apply(&mut self, event: &Happened) {
///         match event {
///             Happened::Paid(amount) => self.balance += amount,
///             Happened::Drawn(amount) => self.balance -= amount,
///         }
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// # let broker = millstream_embedded::open(&"memory:".parse()?).await?;
/// let accounts = Aggregates::<Account>::new(EventStore::open(broker, "bank").await?).snapshot_every(100);
/// let draw = |amount| move |account: &Account| match account.balance >= amount {
///     true => Ok(vec![Happened::Drawn(amount)]),
///     false => Err(format!("{} are there", account.balance)),
/// };
/// accounts.execute("ann", |_| Ok::<_, String>(vec![Happened::Paid(50)])).await?;
/// assert_eq!(accounts.execute("ann", draw(30)).await?.state.balance, 20);
/// let error = accounts.execute("ann", draw(30)).await.unwrap_err();
/// assert!(matches!(error, ExecuteError::Refused(why) if why == "20 are there"));
/// # Ok(())
/// # }
/// ```
pub struct Aggregates<A> {
    store: EventStore,
    upcasters: Arc<Upcasters>,
    attempts: u32,
    snapshots: Option<Snapshots<A>>,
}

/// How and when snapshots are taken.
struct Snapshots<A> {
    every: u64,
    write: fn(&A) -> Result<Message, serde_json::Error>,
    read: fn(&Message) -> Option<A>,
}

impl<A> Clone for Snapshots<A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Snapshots<A> {}

impl<A> Clone for Aggregates<A> {
    fn clone(&self) -> Self {
        let Aggregates { store, upcasters, attempts, snapshots } = self;
        Aggregates {
            store: store.clone(),
            upcasters: upcasters.clone(),
            attempts: *attempts,
            snapshots: *snapshots,
        }
    }
}

impl<A> fmt::Debug for Aggregates<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aggregates").field("store", &self.store).finish_non_exhaustive()
    }
}

/// A snapshot as it is written.
#[derive(Serialize, Deserialize)]
struct Written<S> {
    form: u32,
    state: S,
}

/// An aggregate as its events have made it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Loaded<A> {
    /// Its state.
    pub state: A,
    /// The version of its last event; `None` if it has none.
    pub version: Option<u64>,
}

/// What has come of a decision.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Executed<A> {
    /// The state after it.
    pub state: A,
    /// The version of its last event; `None` if it has none.
    pub version: Option<u64>,
    /// How many events were appended now: none if nothing was decided, or if this command was executed before.
    pub appended: usize,
}

/// Why an aggregate cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its first events were [truncated](EventStore::truncate), and there is no snapshot that has them: none was taken, this handle takes
    /// none, or its state has another form now.
    #[error(
        "`{stream}` was truncated before event {first}, and no snapshot of this form has what was before"
    )]
    Truncated {
        /// The stream.
        stream: String,
        /// The version of the first event that is still read.
        first: u64,
    },
    /// One of its events cannot be read.
    #[error("event {version} of `{stream}`")]
    Event {
        /// The stream.
        stream: String,
        /// The event's version.
        version: u64,
        /// Why.
        #[source]
        error: DecodeError,
    },
}

/// Why a command was not executed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecuteError<E: fmt::Debug> {
    /// The decision was that it may not be.
    #[error("the command was refused: {0:?}")]
    Refused(E),
    /// The aggregate cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Nothing was appended, or is not known to be. After [`AppendError::Unknown`] the same [command](Executing::command) can be
    /// executed again. A conflict means that others were faster, as often as it was tried.
    #[error(transparent)]
    Append(#[from] AppendError),
}

impl<A: Aggregate> Aggregates<A> {
    /// Aggregates in this store, without snapshots.
    ///
    /// # Panics
    /// If their name is empty or holds a `-`.
    pub fn new(store: EventStore) -> Self {
        assert!(!A::NAME.is_empty() && !A::NAME.contains('-'), "`{}` is no name of aggregates", A::NAME);
        Aggregates { store, upcasters: Arc::default(), attempts: 16, snapshots: None }
    }

    /// Reads events of older forms by these.
    #[must_use]
    pub fn upcasters(mut self, upcasters: Upcasters) -> Self {
        self.upcasters = Arc::new(upcasters);
        self
    }

    /// How often a decision is made at most, if others append meanwhile. Default 16.
    ///
    /// # Panics
    /// If it is 0.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        assert!(attempts > 0, "a decision is made at least once");
        self.attempts = attempts;
        self
    }

    /// Keeps the state whenever so many events have come since it was kept, as JSON, and loads from there. A snapshot that cannot be
    /// written or read is no error: the events have everything, unless they are truncated.
    ///
    /// # Panics
    /// If `events` is 0.
    #[must_use]
    pub fn snapshot_every(mut self, events: u64) -> Self
    where
        A: Serialize + DeserializeOwned,
    {
        assert!(events > 0, "a snapshot after no event is one for ever");
        self.snapshots = Some(Snapshots {
            every: events,
            write: |state| {
                let written = serde_json::to_vec(&Written { form: A::STATE_VERSION, state })?;
                Ok(Message::new(written).with_content_type("application/json"))
            },
            read: |message| {
                let written: Written<A> = serde_json::from_slice(message.body()).ok()?;
                (written.form == A::STATE_VERSION).then_some(written.state)
            },
        });
        self
    }

    /// The name of an aggregate's stream.
    pub fn stream(&self, id: &str) -> String {
        format!("{}-{id}", A::NAME)
    }

    /// An aggregate's state, which is the default one if nothing has happened to it.
    ///
    /// # Errors
    /// If its events cannot be read.
    pub async fn load(&self, id: &str) -> Result<Loaded<A>, LoadError> {
        Ok(self.loaded(&self.stream(id)).await?.0)
    }

    /// Decides with `decide`, which says what happens, or why nothing does, and appends that. If somebody else has appended
    /// meanwhile, it decides again upon the new state.
    ///
    /// # Errors
    /// What `decide` says, or if the store cannot be read or written.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the events appended or not.
    pub async fn execute<E: fmt::Debug>(
        &self,
        id: &str,
        decide: impl FnMut(&A) -> Result<Vec<A::Event>, E>,
    ) -> Result<Executed<A>, ExecuteError<E>> {
        self.on(id).execute(decide).await
    }

    /// A decision on this aggregate, of which more is to be said.
    pub fn on<'a>(&'a self, id: &str) -> Executing<'a, A> {
        Executing { aggregates: self, stream: self.stream(id), command: None, said: Said::default() }
    }

    /// The state, and the version at which it was kept last.
    async fn loaded(&self, stream: &str) -> Result<(Loaded<A>, Option<u64>), LoadError> {
        let mut loaded = Loaded { state: A::default(), version: None };
        let mut kept = None;
        if let Some(snapshots) = &self.snapshots
            && let Some((version, message)) = self.store.snapshot(stream).await?
            && let Some(state) = (snapshots.read)(&message)
        {
            (loaded, kept) = (Loaded { state, version: Some(version) }, Some(version));
        }
        let from = loaded.version.map_or(0, |version| version + 1);
        let mut events = self.store.read(stream).from(from).events();
        let mut begin = None;
        while let Some(recorded) = events.next().await {
            let recorded = recorded?;
            begin.get_or_insert(recorded.version);
            let event = self.upcasters.decode(&recorded.event).map_err(|error| LoadError::Event {
                stream: stream.to_owned(),
                version: recorded.version,
                error,
            })?;
            loaded.state.apply(&event);
            loaded.version = Some(recorded.version);
        }
        // A state of some of the events is none.
        if let Some(first) = self.store.truncated(stream)
            && from < first
            && begin != Some(from)
        {
            return Err(LoadError::Truncated { stream: stream.to_owned(), first });
        }
        Ok((loaded, kept))
    }

    async fn keep(&self, stream: &str, loaded: &Loaded<A>, kept: Option<u64>) {
        let (Some(snapshots), Some(version)) = (&self.snapshots, loaded.version) else { return };
        if version + 1 - kept.map_or(0, |kept| kept + 1) < snapshots.every {
            return;
        }
        let saved: Result<(), Box<dyn Error + Send + Sync>> = async {
            let state = (snapshots.write)(&loaded.state)?;
            Ok(self.store.save_snapshot(stream, version, state).await?)
        }
        .await;
        if let Err(error) = saved {
            tracing::warn!(stream, version, %error, "no snapshot was taken: all events are read instead");
        }
    }
}

/// What is said of each event of a command.
#[derive(Default)]
struct Said {
    correlation_id: Option<String>,
    causation_id: Option<String>,
    metadata: Vec<(String, String)>,
}

/// A decision on an aggregate: [`Aggregates::on`].
#[must_use = "nothing is decided before `execute`"]
pub struct Executing<'a, A> {
    aggregates: &'a Aggregates<A>,
    stream: String,
    command: Option<String>,
    said: Said,
}

impl<A> fmt::Debug for Executing<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stream, command) = (&self.stream, &self.command);
        f.debug_struct("Executing").field("stream", stream).field("command", command).finish_non_exhaustive()
    }
}

impl<A: Aggregate> Executing<'_, A> {
    /// The command's id, which its events name as their cause: one that is executed again under it changes nothing, as long as
    /// it is among the last 65,536 commits of the store.
    pub fn command(mut self, id: impl Into<String>) -> Self {
        let id = id.into();
        self.said.causation_id = Some(id.clone());
        self.command = Some(id);
        self
    }

    /// An event that causes it: its events name that, and executed again for the same event it changes nothing, as with a
    /// [command](Self::command).
    pub fn caused_by(self, cause: &Event) -> Self {
        let correlation = cause.correlation_id.as_ref().unwrap_or(&cause.id).clone();
        self.command(&cause.id).correlation_id(correlation)
    }

    /// What its events belong to.
    pub fn correlation_id(mut self, id: impl Into<String>) -> Self {
        self.said.correlation_id = Some(id.into());
        self
    }

    /// What is said of its events.
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.said.metadata.push((name.into(), value.into()));
        self
    }

    /// Decides: [`Aggregates::execute`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn execute<E: fmt::Debug>(
        self,
        mut decide: impl FnMut(&A) -> Result<Vec<A::Event>, E>,
    ) -> Result<Executed<A>, ExecuteError<E>> {
        let Executing { aggregates, stream, command, said } = self;
        let commit = command.unwrap_or_else(new_id);
        let mut attempt = 1;
        loop {
            let (mut loaded, kept) = aggregates.loaded(&stream).await?;
            let nothing = |Loaded { state, version }| Executed { state, version, appended: 0 };
            if aggregates.store.committed(&stream, &commit).is_some() {
                return Ok(nothing(loaded));
            }
            let decided = decide(&loaded.state).map_err(ExecuteError::Refused)?;
            if decided.is_empty() {
                return Ok(nothing(loaded));
            }
            let events = decided.iter().enumerate().map(|(index, value)| {
                let event =
                    Event::of(value).map_err(|error| AppendError::Codec { index, error: Arc::new(error) })?;
                Ok(said.of(event))
            });
            let events = events.collect::<Result<Vec<_>, AppendError>>()?;
            let expected = Expected::after(loaded.version);
            match aggregates.store.append_as(&commit, &stream, expected, events).await {
                // Somebody has executed it at the same time: the state is what that has made.
                Ok(appended) if appended.repeated => {}
                Ok(appended) => {
                    decided.iter().for_each(|event| loaded.state.apply(event));
                    loaded.version = Some(appended.last_version);
                    aggregates.keep(&stream, &loaded, kept).await;
                    let Loaded { state, version } = loaded;
                    return Ok(Executed { state, version, appended: decided.len() });
                }
                Err(AppendError::Conflict(_)) if attempt < aggregates.attempts => attempt += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Said {
    fn of(&self, mut event: Event) -> Event {
        event.correlation_id.clone_from(&self.correlation_id);
        event.causation_id.clone_from(&self.causation_id);
        event.metadata.extend(self.metadata.iter().cloned());
        event
    }
}
