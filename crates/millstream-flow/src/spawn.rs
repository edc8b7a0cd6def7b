//! Tasks that a flow owns: started when somebody first asks for their items, stopped when nobody can any more.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use tokio::task::AbortHandle;

use crate::scope::Scope;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

enum State {
    Waiting(Vec<Task>),
    Running(Vec<AbortHandle>),
}

/// Tasks shared by those who read from them. The first reader starts them; the last one to go aborts them.
#[derive(Clone)]
pub(crate) struct Tasks {
    shared: Arc<Shared>,
    started: bool,
}

struct Shared {
    state: Mutex<State>,
    scope: Arc<Scope>,
}

impl Tasks {
    pub(crate) fn new(scope: Arc<Scope>, tasks: Vec<Task>) -> Self {
        Tasks { shared: Arc::new(Shared { state: Mutex::new(State::Waiting(tasks)), scope }), started: false }
    }

    /// Starts the tasks on the runtime that polls the flow, if nobody has yet.
    #[inline]
    pub(crate) fn start(&mut self) {
        if !self.started {
            self.started = true;
            self.shared.start();
        }
    }
}

impl Shared {
    #[cold]
    fn start(&self) {
        let mut state = self.state.lock().expect("spawning does not panic inside a runtime");
        if let State::Waiting(tasks) = &mut *state {
            let handles = tasks.drain(..).map(|task| self.scope.tasks.spawn(task).abort_handle()).collect();
            *state = State::Running(handles);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Ok(State::Running(handles)) = self.state.get_mut() {
            for handle in handles {
                handle.abort();
            }
        }
    }
}
