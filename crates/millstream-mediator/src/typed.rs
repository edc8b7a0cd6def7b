//! Behaviours for one type of request, among those for all.

use std::any::{Any, TypeId};
use std::borrow::Cow;
use std::future::Future;
use std::marker::PhantomData;

use crate::behaviour::{Behaviour, Next};
use crate::call::Call;
use crate::error::Error;
use crate::message::{About, Request};

/// What stands around the handler of one type of request, and so knows the request and its response; around the handlers of a
/// notification as [`Notified<N>`](crate::Notified), around the opening of a stream as [`Opening<R>`](crate::Opening). Added by
/// [`Builder::behaviour_of`](crate::Builder::behaviour_of).
pub trait BehaviourOf<R: Request>: Sized + Send + Sync + 'static {
    /// What it is and how it is set, in a few words.
    fn name(&self) -> Cow<'static, str>;

    /// The one for this handler, where it may count what it does.
    fn of(&self, about: &About) -> Self;

    /// What is wrong with how it is set, with a remedy: a mediator with such a behaviour is not built.
    fn problem(&self) -> Option<String> {
        None
    }

    /// Does what it does around `next`.
    fn call<N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> impl Future<Output = Result<R::Response, Error>> + Send;
}

/// A value of one type as another, which it is.
fn same<A: 'static, B: 'static>(value: A) -> B {
    let mut value = Some(value);
    let slot: &mut dyn Any = &mut value;
    slot.downcast_mut::<Option<B>>().and_then(Option::take).expect("the types were compared before")
}

/// A behaviour for `R` as one for all; its scope leaves out all but `R`.
pub struct Only<R, B> {
    behaviour: B,
    of: PhantomData<fn(R)>,
}

impl<R, B> Only<R, B> {
    pub(crate) fn new(behaviour: B) -> Self {
        Only { behaviour, of: PhantomData }
    }
}

impl<R: Request, B: BehaviourOf<R>> Behaviour for Only<R, B> {
    fn name(&self) -> Cow<'static, str> {
        self.behaviour.name()
    }

    fn of(&self, about: &About) -> Self {
        Only::new(self.behaviour.of(about))
    }

    fn problem(&self) -> Option<String> {
        self.behaviour.problem()
    }

    #[inline]
    async fn call<Q: Request, N: Next<Q>>(
        &self,
        call: &Call<'_>,
        request: Q,
        next: &N,
    ) -> Result<Q::Response, Error> {
        // Of another type this is never called, but it is compiled.
        if TypeId::of::<Q>() != TypeId::of::<R>() {
            return next.call(call, request).await;
        }
        let next = As::<N, Q> { next: next.clone(), of: PhantomData };
        same(self.behaviour.call(call, same::<Q, R>(request), &next).await)
    }
}

/// The next one for `Q`, as one for `R`, which is the same type.
struct As<N, Q> {
    next: N,
    of: PhantomData<fn(Q)>,
}

impl<N: Clone, Q> Clone for As<N, Q> {
    fn clone(&self) -> Self {
        As { next: self.next.clone(), of: PhantomData }
    }
}

impl<R: Request, Q: Request, N: Next<Q>> Next<R> for As<N, Q> {
    #[inline]
    async fn call(&self, call: &Call<'_>, request: R) -> Result<R::Response, Error> {
        same(self.next.call(call, same::<R, Q>(request)).await)
    }
}
