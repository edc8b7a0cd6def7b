//! What is there, as far as AMQP and the management tell it.

use millstream_message::{
    Binding, BrokerError, Declaration, Exchange, Queue, QueueStats, Standing, differences,
};

use super::Inner;
use crate::link::CallError;
use crate::proto::{Closed, Method};
use crate::refusals::{difference, failed};
use crate::topology;

impl Inner {
    /// How something that is to be declared stands.
    pub(super) async fn standing(&self, what: &Declaration) -> Result<Standing, BrokerError> {
        match what {
            Declaration::Queue(queue) => {
                topology::check_declared(queue)?;
                let check = topology::check_queue(&queue.name);
                let words = self.compared(what, &check, &topology::declare_queue(queue)).await?;
                self.explained(words, async || {
                    Ok(self.told_queue(&queue.name).await?.and_then(|told| differences(&told, queue)))
                })
                .await
            }
            Declaration::Exchange(exchange) => {
                topology::check_name("exchange", &exchange.name)?;
                let check = topology::check_exchange(&exchange.name);
                let words = self.compared(what, &check, &topology::declare_exchange(exchange)).await?;
                self.explained(words, async || {
                    Ok(self
                        .told_exchange(&exchange.name)
                        .await?
                        .and_then(|told| differences(&told, exchange)))
                })
                .await
            }
            Declaration::Binding(binding) => Ok(match self.told_binding(binding).await {
                Ok(true) => Standing::Same,
                Ok(false) => Standing::Missing,
                Err(error) => Standing::Unknown(error.to_string()),
            }),
        }
    }

    /// Declares what is there already, which changes nothing and says how it differs.
    async fn compared(
        &self,
        what: &Declaration,
        check: &Method,
        declare: &Method,
    ) -> Result<Standing, BrokerError> {
        let failed = |error| failed(&what.to_string(), error);
        match self.control(check).await {
            Ok(_) => {}
            Err(CallError::Refused(Closed { code: 404, .. })) => return Ok(Standing::Missing),
            Err(error) => return Err(failed(error)),
        }
        match self.control(declare).await {
            Ok(_) => Ok(Standing::Same),
            Err(CallError::Refused(closed)) if closed.code == 406 => {
                Ok(Standing::Different(difference(&closed)))
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// All differences, where the management tells them; AMQP tells the first one.
    async fn explained(
        &self,
        standing: Standing,
        all: impl AsyncFnOnce() -> Result<Option<String>, BrokerError>,
    ) -> Result<Standing, BrokerError> {
        match standing {
            Standing::Different(first) => {
                Ok(Standing::Different(all().await.ok().flatten().unwrap_or(first)))
            }
            other => Ok(other),
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

    async fn told_exchange(&self, name: &str) -> Result<Option<Exchange>, BrokerError> {
        self.management()?.exchange(name).await
    }

    async fn told_binding(&self, binding: &Binding) -> Result<bool, BrokerError> {
        self.management()?.has(binding).await
    }
}

#[cfg(not(feature = "management"))]
fn no_management<T>() -> Result<T, BrokerError> {
    let text =
        "list of queues: enable the feature `management` of millstream-rabbitmq, or look with `rabbitmqctl`";
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

    async fn told_exchange(&self, _: &str) -> Result<Option<Exchange>, BrokerError> {
        no_management()
    }

    async fn told_binding(&self, _: &Binding) -> Result<bool, BrokerError> {
        no_management()
    }
}
