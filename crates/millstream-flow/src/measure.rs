//! How large an item is, for whoever counts bytes.

/// Measures items in bytes. Any `Fn(&T) -> usize` is one; [`Unmeasured`] counts nothing and costs nothing.
pub trait Measure<T>: Send + 'static {
    /// Whether items are measured at all. `false` only for [`Unmeasured`].
    const MEASURES: bool = true;
    /// The size of `item` in bytes, heap included. Must give the same answer each time it is asked.
    fn measure(&self, item: &T) -> usize;
}

impl<T, F: Fn(&T) -> usize + Send + 'static> Measure<T> for F {
    #[inline]
    fn measure(&self, item: &T) -> usize {
        self(item)
    }
}

/// Items are counted, not measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unmeasured;

impl<T> Measure<T> for Unmeasured {
    const MEASURES: bool = false;
    #[inline]
    fn measure(&self, _item: &T) -> usize {
        0
    }
}

/// How much may wait between two stages.
///
/// In items by default; with [`bytes`](Capacity::bytes) in bytes too, whichever is reached first.
///
/// ```
/// use millstream_flow::Capacity;
/// let auto = Capacity::auto(); // 1,024 items to begin with, the tuner's to move
/// let fixed = Capacity::items(256).bytes(1 << 20, |line: &String| line.len());
/// # let _ = (auto, fixed);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Capacity<W = Unmeasured> {
    pub(crate) items: crate::Setting,
    pub(crate) bytes_max: Option<usize>,
    pub(crate) measure: W,
}

impl Capacity {
    /// So many items, fixed.
    ///
    /// # Panics
    /// If `items` is 0.
    pub fn items(items: usize) -> Self {
        assert!(items > 0, "a hop of no items moves nothing");
        Capacity { items: items.into(), ..Capacity::default() }
    }

    /// Items as the tuner finds best.
    pub fn auto() -> Self {
        Capacity::default()
    }

    /// Also at most `bytes`, as `measure` counts them. An item is let in while less than that
    /// waits, so what waits can exceed it by one item, and an item larger than the whole still passes.
    ///
    /// # Panics
    /// If `bytes` is 0.
    pub fn bytes<W>(self, bytes: usize, measure: W) -> Capacity<W> {
        assert!(bytes > 0, "a hop of no bytes moves nothing");
        Capacity { items: self.items, bytes_max: Some(bytes), measure }
    }
}

impl From<usize> for Capacity {
    fn from(items: usize) -> Self {
        Capacity::items(items)
    }
}
