//! Hooks before, after and instead: a behaviour for whom a whole behaviour is too much.

use std::any::Any;
use std::borrow::Cow;
use std::future::{Future, ready};
use std::sync::Arc;

use millstream_flow::BoxError;

use crate::behaviour::{Behaviour, Next};
use crate::call::Call;
use crate::error::{Error, ErrorKind};
use crate::message::{About, Request};
use crate::typed::BehaviourOf;

/// Hooks for one type of request. What is not implemented changes nothing.
///
/// ```
/// use millstream_flow::BoxError;
/// use millstream_mediator::{Call, Error, Intercept, InterceptorOf, Mediator, Request};
///
/// struct Greet(String);
/// impl Request for Greet { type Response = String; }
///
/// struct Polite;
/// impl InterceptorOf<Greet> for Polite {
///     async fn request(&self, _: &Call<'_>, greet: Greet) -> Result<Greet, BoxError> {
///         if greet.0.is_empty() { return Err("nobody to greet".into()); }
///         Ok(Greet(format!("dear {}", greet.0)))
///     }
///     async fn response(&self, _: &Call<'_>, text: String) -> Result<String, BoxError> { Ok(text + "!") }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let mediator = Mediator::builder()
///     .behaviour_of(Intercept::new(Polite))
///     .request(async |greet: Greet| Ok::<_, Error>(format!("hello {}", greet.0)))
///     .build()?;
/// assert_eq!(mediator.send(Greet("Ada".into())).await?, "hello dear Ada!");
/// assert!(mediator.send(Greet("".into())).await.is_err());
/// # Ok(()) }
/// ```
pub trait InterceptorOf<R: Request>: Send + Sync + 'static {
    /// Before the handler: changes the request, or refuses it with an error, which fails the call as
    /// [`ErrorKind::Invalid`].
    fn request(&self, _call: &Call<'_>, request: R) -> impl Future<Output = Result<R, BoxError>> + Send {
        ready(Ok(request))
    }

    /// After a success: changes the response, or fails the call after all.
    fn response(
        &self,
        _call: &Call<'_>,
        response: R::Response,
    ) -> impl Future<Output = Result<R::Response, BoxError>> + Send {
        ready(Ok(response))
    }

    /// After a failure, the refusals of this interceptor among them: changes the error, or answers after all.
    fn error(
        &self,
        _call: &Call<'_>,
        error: Error,
    ) -> impl Future<Output = Result<R::Response, Error>> + Send {
        ready(Err(error))
    }
}

/// The hooks of an [`InterceptorOf`] as a behaviour.
pub struct Intercept<X>(Arc<X>);

impl<X> Intercept<X> {
    /// These hooks.
    pub fn new(interceptor: X) -> Self {
        Intercept(Arc::new(interceptor))
    }
}

impl<R: Request, X: InterceptorOf<R>> BehaviourOf<R> for Intercept<X> {
    fn name(&self) -> Cow<'static, str> {
        name_of::<X>()
    }

    fn of(&self, _: &About) -> Self {
        Intercept(self.0.clone())
    }

    async fn call<N: Next<R>>(&self, call: &Call<'_>, request: R, next: &N) -> Result<R::Response, Error> {
        let failed = |kind: ErrorKind, error: BoxError| Error::new(call.about(), kind).because(error);
        let ended = match self.0.request(call, request).await {
            Err(error) => Err(failed(ErrorKind::Invalid, error)),
            Ok(request) => match next.call(call, request).await {
                Ok(response) => {
                    self.0.response(call, response).await.map_err(|error| failed(ErrorKind::Failed, error))
                }
                Err(error) => Err(error),
            },
        };
        match ended {
            Ok(response) => Ok(response),
            Err(error) => self.0.error(call, error).await,
        }
    }
}

fn name_of<X>() -> Cow<'static, str> {
    format!("interceptor {}", crate::message::short_name(std::any::type_name::<X>())).into()
}

/// Hooks for all requests in a scope. They see requests and responses as [`Any`], in their place: what one changes
/// stays what it is.
pub trait Interceptor: Send + Sync + 'static {
    /// Before the handler. An error refuses the call as [`ErrorKind::Invalid`].
    ///
    /// # Errors
    /// To refuse the call.
    fn request(&self, _call: &Call<'_>, _request: &mut dyn Any) -> Result<(), BoxError> {
        Ok(())
    }

    /// After a success.
    ///
    /// # Errors
    /// To fail the call after all.
    fn response(&self, _call: &Call<'_>, _response: &mut dyn Any) -> Result<(), BoxError> {
        Ok(())
    }

    /// After a failure.
    fn error(&self, _call: &Call<'_>, error: Error) -> Error {
        error
    }
}

/// The hooks of an [`Interceptor`] as a behaviour.
pub struct InterceptAll<X>(Arc<X>);

impl<X: Interceptor> InterceptAll<X> {
    /// These hooks.
    pub fn new(interceptor: X) -> Self {
        InterceptAll(Arc::new(interceptor))
    }
}

impl<X: Interceptor> Behaviour for InterceptAll<X> {
    fn name(&self) -> Cow<'static, str> {
        name_of::<X>()
    }

    fn of(&self, _: &About) -> Self {
        InterceptAll(self.0.clone())
    }

    #[inline]
    async fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        mut request: R,
        next: &N,
    ) -> Result<R::Response, Error> {
        let failed = |kind: ErrorKind, error: BoxError| Error::new(call.about(), kind).because(error);
        let ended = match self.0.request(call, &mut request) {
            Ok(()) => next.call(call, request).await,
            Err(error) => Err(failed(ErrorKind::Invalid, error)),
        };
        let ended = ended.and_then(|mut response| {
            self.0.response(call, &mut response).map_err(|error| failed(ErrorKind::Failed, error))?;
            Ok(response)
        });
        ended.map_err(|error| self.0.error(call, error))
    }
}
