//! Knobs: the numbers that people tune by hand elsewhere.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How a number that can be tuned is given: fixed by the user, or left to the tuner.
///
/// ```
/// use millstream_flow::Setting;
/// assert_eq!(Setting::from(64), Setting::Fixed(64));
/// assert_eq!(Setting::default(), Setting::Auto);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Setting {
    /// A first sensible value that may be moved within the knob's bounds while the flow runs.
    #[default]
    Auto,
    /// This number, whatever happens.
    Fixed(usize),
}

impl From<usize> for Setting {
    fn from(number: usize) -> Self {
        Setting::Fixed(number)
    }
}

/// A number of a running flow that may be moved within bounds. Operators read it at each quantum, so that a move
/// takes effect within microseconds. A source or an operator of your own reads one, too, that [`Pipe::knob`](crate::Pipe::knob)
/// shows to whoever tunes the flow.
#[derive(Clone)]
pub struct Knob {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    value: AtomicUsize,
    min: usize,
    max: usize,
    frozen: bool,
}

impl Knob {
    /// A knob that `Setting::Auto` lets begin at `first`, and `Setting::Fixed` freezes at its number; both brought within the
    /// bounds.
    ///
    /// # Panics
    /// If the lowest bound is 0 or above the highest.
    pub fn new(
        name: impl Into<String>,
        setting: Setting,
        first: usize,
        bounds: RangeInclusive<usize>,
    ) -> Self {
        let (min, max) = bounds.into_inner();
        assert!(0 < min && min <= max, "a knob's bounds are at least 1 and in order");
        let (value, frozen) = match setting {
            Setting::Auto => (first, false),
            Setting::Fixed(number) => (number, true),
        };
        let value = AtomicUsize::new(value.clamp(min, max));
        Knob { shared: Arc::new(Shared { name: name.into(), value, min, max, frozen }) }
    }

    /// What it sets, for example `batch count`.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The number in force.
    #[inline]
    pub fn value(&self) -> usize {
        self.shared.value.load(Ordering::Relaxed)
    }

    /// The lowest and highest number it takes.
    pub fn bounds(&self) -> (usize, usize) {
        (self.shared.min, self.shared.max)
    }

    /// True if the user fixed the number.
    pub fn is_frozen(&self) -> bool {
        self.shared.frozen
    }

    /// Moves the knob, within its bounds. Returns the number now in force.
    ///
    /// # Errors
    /// If the user fixed the number.
    pub fn set(&self, value: usize) -> Result<usize, Frozen> {
        if self.shared.frozen {
            return Err(Frozen { name: self.shared.name.clone(), value: self.value() });
        }
        let value = value.clamp(self.shared.min, self.shared.max);
        self.shared.value.store(value, Ordering::Relaxed);
        Ok(value)
    }
}

impl fmt::Debug for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { name, min, max, frozen, .. } = &*self.shared;
        write!(f, "{name} = {} in {min}..={max}{}", self.value(), if *frozen { " (fixed)" } else { "" })
    }
}

/// A knob that the user fixed cannot be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen {
    name: String,
    value: usize,
}

impl fmt::Display for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} was fixed at {}; give `auto` to let it move", self.name, self.value)
    }
}

impl std::error::Error for Frozen {}
