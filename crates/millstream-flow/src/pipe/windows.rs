//! Many items as one value.

use super::Pipe;
use crate::flow::Flow;
use crate::op::window::aggregate::Aggregate;
use crate::op::window::{
    AnyWindow, DropLate, Emit, Groups, KeepLate, Key, Kind, Moving, TimeOf, Timed, Window, Windowed, Windows,
};
use crate::token::Settle;

/// The value of a window, or an item that came too late.
type WindowOrLate<F, Q, A> =
    Result<Windowed<Q, <A as Aggregate<<F as Flow>::Item>>::Output>, <F as Flow>::Item>;

/// What stands for many items of a flow.
type Grouped<F> = <<F as Flow>::Token as Settle>::Group;

impl<F: Flow> Pipe<F> {
    /// Gathers the items of each key in windows, and hands on one value for each: a count, a sum, the items themselves.
    /// See [`Window`] for the kinds of windows and the times they go by, and [`Aggregate`] for the values.
    ///
    /// A value's token stands for all items of the window: confirming it confirms them. An item that is in several windows is
    /// done when all of them are.
    ///
    /// # Ordering
    /// Windows of time come in the order of their ends, and those of one end in no order of their keys. Sessions come in
    /// the order of their ends too.
    ///
    /// # Backpressure
    /// While complete windows are handed on, nothing is taken from upstream. What is held is bounded by the number of keys
    /// ([`Window::max_keys`]) and the size of an aggregate's value.
    ///
    /// # Timers
    /// Windows by arrival are complete when their time is over, whether anything comes or not. Windows by event time wait
    /// for an item that tells that time has passed, or for [`EventTime::idle`](crate::EventTime::idle).
    ///
    /// # At the end
    /// All open windows are handed on, with [`Closed::End`](crate::Closed::End). If the run is cancelled, or fails, their items
    /// are given back to their source.
    ///
    /// # Panics
    /// A panic of `key` or of the aggregate costs the item in hand or, while a window is put together, that window's items; the
    /// run's [`PanicPolicy`](crate::PanicPolicy) decides.
    ///
    /// ```
    /// use millstream_flow::{EventTime, Mean, Pipe, Window};
    /// use std::time::{Duration, SystemTime};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    /// let readings = [(at(0), "hall", 20.0), (at(40), "hall", 22.0), (at(50), "cellar", 11.0), (at(70), "hall", 30.0)];
    /// let each_minute = Window::tumbling(Duration::from_secs(60))
    ///     .event_time(EventTime::new(|(at, ..): &(SystemTime, &str, f64)| *at));
    /// let (means, _) = Pipe::from_iter(readings)
    ///     .window(each_minute, |(_, room, _)| *room, Mean(|(.., degrees): &(SystemTime, &str, f64)| *degrees))
    ///     .map(|window| (window.end, window.key, window.value))
    ///     .collect()
    ///     .await
    ///     .unwrap();
    /// assert_eq!(means, [(at(60), "hall", 21.0), (at(60), "cellar", 11.0), (at(120), "hall", 30.0)]);
    /// # }
    /// ```
    pub fn window<C, Q, A>(
        self,
        window: Window<C>,
        key: impl FnMut(&F::Item) -> Q,
        aggregate: A,
    ) -> Pipe<impl Flow<Item = Windowed<Q, A::Output>, Token = Grouped<F>>>
    where
        C: TimeOf<F::Item>,
        Q: Key,
        A: Aggregate<F::Item>,
    {
        self.windowed::<_, _, _, _, DropLate>(window, key, aggregate)
    }

    /// As [`window`](Pipe::window), and hands on, as errors, the items that came too late for every window they belong to.
    pub fn window_or_late<C, Q, A>(
        self,
        window: Window<C>,
        key: impl FnMut(&F::Item) -> Q,
        aggregate: A,
    ) -> Pipe<impl Flow<Item = WindowOrLate<F, Q, A>, Token = Grouped<F>>>
    where
        C: TimeOf<F::Item>,
        Q: Key,
        A: Aggregate<F::Item>,
    {
        self.windowed::<_, _, _, _, KeepLate>(window, key, aggregate)
    }

    fn windowed<C, Q, N, A, O>(
        self,
        window: Window<C>,
        key: N,
        aggregate: A,
    ) -> Pipe<impl Flow<Item = O::Item, Token = Grouped<F>>>
    where
        C: TimeOf<F::Item>,
        Q: Key,
        N: FnMut(&F::Item) -> Q,
        A: Aggregate<F::Item>,
        O: Emit<F::Item, Q, A::Output>,
    {
        let Window { kind, keys_max, time } = window;
        self.then("window", |upstream, op, scope| {
            let name = op.name().to_string();
            let scope = scope.clone();
            let (flow, each) = match kind {
                Kind::Timed(spec) => {
                    let each = Timed::<F::Item, F::Token, C, Q, N, A, O>::key_bytes(&spec, &time);
                    let book = Timed::<_, F::Token, _, _, _, _, O>::new(spec, time, keys_max, key, aggregate);
                    (AnyWindow::Timed(Windows::new(upstream, book, op, scope.clone())), each)
                }
                Kind::Groups(limits) => {
                    let each = Groups::<F::Item, F::Token, C, Q, N, A, O>::key_bytes(limits, &time);
                    let book =
                        Groups::<_, F::Token, _, _, _, _, O>::new(limits, time, keys_max, key, aggregate);
                    (AnyWindow::Groups(Windows::new(upstream, book, op, scope.clone())), each)
                }
                Kind::Moving { items, every } => {
                    let (size, own) = ((items, every), op.clone());
                    let book =
                        Moving::<_, F::Token, _, _, _, _, O>::new(size, time, keys_max, key, aggregate, own);
                    let each = Moving::<F::Item, F::Token, C, Q, N, A, O>::key_bytes(items, every);
                    (AnyWindow::Moving(Windows::new(upstream, book, op, scope.clone())), each)
                }
            };
            scope.add_memory(name, keys_max.saturating_mul(each));
            flow
        })
    }
}
