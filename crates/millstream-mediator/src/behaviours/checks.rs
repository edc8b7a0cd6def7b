//! Calls that are refused before they reach their handler.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use millstream_flow::BoxError;

use crate::behaviour::{Behaviour, Next};
use crate::call::Call;
use crate::error::{Error, ErrorKind};
use crate::message::{About, Request};
use crate::typed::BehaviourOf;

type Rule<R> = dyn Fn(&Call<'_>, &R) -> Result<(), BoxError> + Send + Sync;

/// Looks at requests of one type before anything is done: whether they are valid, whether the caller may.
///
/// ```
/// use millstream_mediator::{Check, ErrorKind, Mediator, Request};
/// use millstream_flow::BoxError;
///
/// struct Transfer { cents: u64 }
/// impl Request for Transfer { type Response = (); }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let mediator = Mediator::builder()
///     .behaviour_of(Check::valid(|transfer: &Transfer| match transfer.cents {
///         0 => Err("nothing to transfer".into()),
///         _ => Ok(()),
///     }))
///     .request(async |_: Transfer| Ok::<_, BoxError>(()))
///     .build()?;
/// assert_eq!(mediator.send(Transfer { cents: 0 }).await.unwrap_err().kind(), &ErrorKind::Invalid);
/// # Ok(()) }
/// ```
pub struct Check<R> {
    kind: ErrorKind,
    rule: Arc<Rule<R>>,
    of: PhantomData<fn(R)>,
}

impl<R: Request> Check<R> {
    /// Fails a request with [`ErrorKind::Invalid`] that the rule finds wrong; what it says is the source.
    pub fn valid(rule: impl Fn(&R) -> Result<(), BoxError> + Send + Sync + 'static) -> Self {
        let rule = Arc::new(move |_: &Call<'_>, request: &R| rule(request));
        Check { kind: ErrorKind::Invalid, rule, of: PhantomData }
    }

    /// Fails a request with [`ErrorKind::Denied`] that the rule does not allow to who is named in the call's
    /// [context](crate::Context).
    pub fn allowed(rule: impl Fn(&Call<'_>, &R) -> Result<(), BoxError> + Send + Sync + 'static) -> Self {
        Check { kind: ErrorKind::Denied, rule: Arc::new(rule), of: PhantomData }
    }
}

impl<R: Request> BehaviourOf<R> for Check<R> {
    fn name(&self) -> Cow<'static, str> {
        if self.kind == ErrorKind::Invalid { "validation".into() } else { "authorization".into() }
    }

    fn of(&self, _: &About) -> Self {
        Check { kind: self.kind.clone(), rule: self.rule.clone(), of: PhantomData }
    }

    #[inline]
    async fn call<N: Next<R>>(&self, call: &Call<'_>, request: R, next: &N) -> Result<R::Response, Error> {
        (self.rule)(call, &request)
            .map_err(|error| Error::new(call.about(), self.kind.clone()).because(error))?;
        next.call(call, request).await
    }
}

impl<R> fmt::Debug for Check<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Check({})", self.kind.word())
    }
}

/// Asks for every call whether it is allowed, by what the call's [context](crate::Context) tells of who makes it.
///
/// ```
/// use millstream_mediator::{Authorize, Kind, Mediator};
///
/// struct Reader;
/// let only_reads = Authorize::new(|call| match (call.about().kind, call.context().get::<Reader>()) {
///     (Kind::Command, Some(Reader)) => Err("readers change nothing".into()),
///     _ => Ok(()),
/// });
/// let builder = Mediator::builder().behaviour(only_reads);
/// # let _ = builder;
/// ```
#[derive(Clone)]
pub struct Authorize(Arc<CallRule>);

type CallRule = dyn Fn(&Call<'_>) -> Result<(), BoxError> + Send + Sync;

impl Authorize {
    /// Fails calls with [`ErrorKind::Denied`] that the rule does not allow; what it says is the source.
    pub fn new(rule: impl Fn(&Call<'_>) -> Result<(), BoxError> + Send + Sync + 'static) -> Self {
        Authorize(Arc::new(rule))
    }
}

impl Behaviour for Authorize {
    fn name(&self) -> Cow<'static, str> {
        "authorization".into()
    }

    fn of(&self, _: &About) -> Self {
        self.clone()
    }

    #[inline]
    async fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<R::Response, Error> {
        (self.0)(call).map_err(|error| Error::new(call.about(), ErrorKind::Denied).because(error))?;
        next.call(call, request).await
    }
}

impl fmt::Debug for Authorize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorize")
    }
}
