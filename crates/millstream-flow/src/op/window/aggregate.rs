//! What becomes of a window's items.

/// Makes one value of many items, piece by piece: windows that overlap share their pieces.
///
/// Ready-made: [`Count`], [`Sum`], [`Mean`], [`Min`], [`Max`], [`Items`], [`Fold`], and tuples of up to four of them, which
/// take a clone of each item.
pub trait Aggregate<T>: Send + 'static {
    /// The value under way.
    type State: Send + 'static;
    /// The value of a complete window.
    type Output;
    /// The value of no items.
    fn start(&self) -> Self::State;
    /// Adds an item.
    fn add(&self, state: &mut Self::State, item: T);
    /// Adds the value of items that came after those in `state`. Must be associative, and give what adding those items would
    /// have given.
    fn merge(&self, state: &mut Self::State, later: &Self::State);
    /// The value, when nothing is to come any more.
    fn finish(&self, state: Self::State) -> Self::Output;
}

/// How many items there are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Count;

impl<T> Aggregate<T> for Count {
    type State = u64;
    type Output = u64;
    fn start(&self) -> u64 {
        0
    }
    #[inline]
    fn add(&self, state: &mut u64, _: T) {
        *state += 1;
    }
    fn merge(&self, state: &mut u64, later: &u64) {
        *state += later;
    }
    fn finish(&self, state: u64) -> u64 {
        state
    }
}

/// The sum of what the function finds in items. Integers overflow as integers do.
#[derive(Debug, Clone, Copy)]
pub struct Sum<N>(pub N);

impl<T, V, N> Aggregate<T> for Sum<N>
where
    N: Fn(&T) -> V + Send + 'static,
    V: Default + Copy + Send + std::ops::AddAssign + 'static,
{
    type State = V;
    type Output = V;
    fn start(&self) -> V {
        V::default()
    }
    #[inline]
    fn add(&self, state: &mut V, item: T) {
        *state += (self.0)(&item);
    }
    fn merge(&self, state: &mut V, later: &V) {
        *state += *later;
    }
    fn finish(&self, state: V) -> V {
        state
    }
}

/// The mean of what the function finds in items.
#[derive(Debug, Clone, Copy)]
pub struct Mean<N>(pub N);

impl<T, N: Fn(&T) -> f64 + Send + 'static> Aggregate<T> for Mean<N> {
    type State = (f64, u64);
    type Output = f64;
    fn start(&self) -> (f64, u64) {
        (0.0, 0)
    }
    #[inline]
    fn add(&self, (sum, items): &mut (f64, u64), item: T) {
        *sum += (self.0)(&item);
        *items += 1;
    }
    fn merge(&self, state: &mut (f64, u64), later: &(f64, u64)) {
        state.0 += later.0;
        state.1 += later.1;
    }
    fn finish(&self, (sum, items): (f64, u64)) -> f64 {
        sum / items as f64
    }
}

/// The smallest of what the function finds in items. A window holds at least one item, so it is always `Some`.
#[derive(Debug, Clone, Copy)]
pub struct Min<N>(pub N);

/// The largest of what the function finds in items. A window holds at least one item, so it is always `Some`.
#[derive(Debug, Clone, Copy)]
pub struct Max<N>(pub N);

macro_rules! extreme {
    ($name:ident, $better:tt) => {
        impl<T, V, N> Aggregate<T> for $name<N>
        where
            N: Fn(&T) -> V + Send + 'static,
            V: PartialOrd + Clone + Send + 'static,
        {
            type State = Option<V>;
            type Output = Option<V>;
            fn start(&self) -> Option<V> {
                None
            }
            #[inline]
            fn add(&self, state: &mut Option<V>, item: T) {
                let value = (self.0)(&item);
                if state.as_ref().is_none_or(|best| value $better *best) {
                    *state = Some(value);
                }
            }
            fn merge(&self, state: &mut Option<V>, later: &Option<V>) {
                if let Some(value) = later
                    && state.as_ref().is_none_or(|best| value $better best)
                {
                    *state = Some(value.clone());
                }
            }
            fn finish(&self, state: Option<V>) -> Option<V> {
                state
            }
        }
    };
}

extreme!(Min, <);
extreme!(Max, >);

/// The items themselves, in the order in which they came. They are bounded by nothing but their number; windows that
/// overlap clone them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Items;

impl<T: Clone + Send + 'static> Aggregate<T> for Items {
    type State = Vec<T>;
    type Output = Vec<T>;
    fn start(&self) -> Vec<T> {
        Vec::new()
    }
    #[inline]
    fn add(&self, state: &mut Vec<T>, item: T) {
        state.push(item);
    }
    fn merge(&self, state: &mut Vec<T>, later: &Vec<T>) {
        state.extend_from_slice(later);
    }
    fn finish(&self, state: Vec<T>) -> Vec<T> {
        state
    }
}

/// Anything: what no items give, how an item is added, and how a later piece is.
#[derive(Debug, Clone, Copy)]
pub struct Fold<I, A, M> {
    /// The value of no items; made anew for each window.
    pub start: I,
    /// Adds an item.
    pub add: A,
    /// Adds the value of later items. Needed by windows that overlap, by sessions by event time, and for late items.
    pub merge: M,
}

impl<T, V, I, A, M> Aggregate<T> for Fold<I, A, M>
where
    V: Send + 'static,
    I: Fn() -> V + Send + 'static,
    A: Fn(&mut V, T) + Send + 'static,
    M: Fn(&mut V, &V) + Send + 'static,
{
    type State = V;
    type Output = V;
    fn start(&self) -> V {
        (self.start)()
    }
    #[inline]
    fn add(&self, state: &mut V, item: T) {
        (self.add)(state, item);
    }
    fn merge(&self, state: &mut V, later: &V) {
        (self.merge)(state, later);
    }
    fn finish(&self, state: V) -> V {
        state
    }
}

macro_rules! tuple {
    ($($name:ident $at:tt),*) => {
        impl<Item: Clone, $($name: Aggregate<Item>),*> Aggregate<Item> for ($($name,)*) {
            type State = ($($name::State,)*);
            type Output = ($($name::Output,)*);
            fn start(&self) -> Self::State {
                ($(self.$at.start(),)*)
            }
            #[inline]
            fn add(&self, state: &mut Self::State, item: Item) {
                $(self.$at.add(&mut state.$at, item.clone());)*
            }
            fn merge(&self, state: &mut Self::State, later: &Self::State) {
                $(self.$at.merge(&mut state.$at, &later.$at);)*
            }
            fn finish(&self, state: Self::State) -> Self::Output {
                ($(self.$at.finish(state.$at),)*)
            }
        }
    };
}

tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);
