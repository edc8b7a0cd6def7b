//! What is there, as far as AMQP and the management tell it.

use millstream_message::{BrokerError, Declaration, Queue, QueueStats, Standing};

use super::Inner;
use crate::link::CallError;
use crate::proto::{Closed, Method};
use crate::refusals::{difference, failed};
use crate::topology;

impl Inner {
    /// How something that is to be declared stands.
    pub(super) async fn standing(&self, what: &Declaration) -> Result<Standing, BrokerError> {
        match what {
            Declaration::Queue(queue) => topology::check_declared(queue)?,
            Declaration::Exchange(exchange) => topology::check_name("exchange", &exchange.name)?,
            Declaration::Binding(_) => {}
        }
        let untold = match self.told_standing(what).await {
            Err(error) => error,
            told => return told,
        };
        let (check, declare) = match what {
            Declaration::Queue(queue) => (topology::check_queue(&queue.name), topology::declare_queue(queue)),
            Declaration::Exchange(exchange) => {
                (topology::check_exchange(&exchange.name), topology::declare_exchange(exchange))
            }
            Declaration::Binding(_) => return Ok(Standing::Unknown(untold.to_string())),
        };
        self.compared(what, &check, &declare, &untold).await
    }

    /// Declares what is there already, which changes nothing and says how it differs.
    async fn compared(
        &self,
        what: &Declaration,
        check: &Method,
        declare: &Method,
        untold: &BrokerError,
    ) -> Result<Standing, BrokerError> {
        let failed = |error| failed(&what.to_string(), error);
        match self.control(check).await {
            Ok(_) => {}
            Err(CallError::Refused(Closed { code: 404, .. })) => return Ok(Standing::Missing),
            Err(CallError::Refused(Closed { code: 405, .. })) => {
                return Ok(Standing::Different("it is exclusive to another connection".to_owned()));
            }
            Err(error) => return Err(failed(error)),
        }
        match self.control(declare).await {
            Ok(_) => Ok(Standing::Same),
            Err(CallError::Refused(closed)) if closed.code == 406 => {
                Ok(Standing::Different(difference(&closed)))
            }
            Err(CallError::Refused(Closed { code: 403, text, .. })) => Ok(Standing::Unknown(format!(
                "it is there; AMQP compares it only for a user who may configure it ({text}), and {untold}"
            ))),
            Err(error) => Err(failed(error)),
        }
    }
}

#[cfg(feature = "management")]
impl Inner {
    fn management(&self) -> Result<crate::management::Management, BrokerError> {
        crate::management::Management::new(&self.options)
    }

    pub(super) async fn told_queues(&self) -> Result<Vec<String>, BrokerError> {
        self.management()?.queues().await
    }

    pub(super) async fn told_figures(&self) -> Result<Vec<QueueStats>, BrokerError> {
        self.management()?.figures().await
    }

    pub(super) async fn told_queue(&self, name: &str) -> Result<Option<Queue>, BrokerError> {
        self.management()?.queue(name).await
    }

    /// One that could not tell is not asked again for a while: a topology has many parts, and each would wait for it.
    async fn told_standing(&self, what: &Declaration) -> Result<Standing, BrokerError> {
        if let Some((since, error)) = &*self.untold.lock()
            && since.elapsed() < UNTOLD
        {
            return Err(error.clone());
        }
        let told = async { self.management()?.standing(what).await }.await;
        *self.untold.lock() = told.as_ref().err().map(|error| (tokio::time::Instant::now(), error.clone()));
        told
    }
}

/// How long a management that could not tell is left alone.
#[cfg(feature = "management")]
const UNTOLD: std::time::Duration = std::time::Duration::from_secs(5);

#[cfg(not(feature = "management"))]
fn no_management<T>() -> Result<T, BrokerError> {
    let text = "way to tell this: enable the feature `management` of millstream-rabbitmq, or look with `rabbitmqctl`";
    Err(crate::refusals::unsupported(text))
}

#[cfg(not(feature = "management"))]
impl Inner {
    pub(super) async fn told_queues(&self) -> Result<Vec<String>, BrokerError> {
        no_management()
    }

    pub(super) async fn told_figures(&self) -> Result<Vec<QueueStats>, BrokerError> {
        no_management()
    }

    pub(super) async fn told_queue(&self, _: &str) -> Result<Option<Queue>, BrokerError> {
        no_management()
    }

    async fn told_standing(&self, _: &Declaration) -> Result<Standing, BrokerError> {
        no_management()
    }
}
