//! The items that flow and what is done to them, the same for every contestant.

use std::hint::black_box;

/// The first operator for `u64`.
#[inline]
pub(crate) fn multiply(i: u64) -> u64 {
    i.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// The filter for `u64`: every other item, so that no branch is mispredicted.
#[inline]
pub(crate) fn kept(x: &u64) -> bool {
    x & 1 == 0
}

/// The last operator for `u64`.
#[inline]
pub(crate) fn mix(x: u64) -> u64 {
    x ^ (x >> 7)
}

/// The sum of `0..items` through all three operators, by the plain scalar loop that is the floor.
///
/// The barrier keeps the loop scalar: vectorised (0.15 ns) it would be a different program, which no pipeline of
/// closures over items can be.
pub(crate) fn three(items: u64) -> u64 {
    let mut sum = 0u64;
    for i in 0..items {
        let x = multiply(i);
        if kept(&x) {
            sum = sum.wrapping_add(mix(x));
        }
        black_box(());
    }
    sum
}

/// The sum of `0..items` through the one operator behind a hop.
pub(crate) fn one(items: u64) -> u64 {
    let mut sum = 0u64;
    for i in 0..items {
        sum = sum.wrapping_add(multiply(i));
        black_box(());
    }
    sum
}

/// A fat item: 200 bytes, one of its fields on the heap.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) id: u64,
    pub(crate) customer: String,
    pub(crate) amount: u64,
    pub(crate) status: u64,
    pub(crate) note: [u8; 152],
}

/// The `i`-th order, built where the optimiser cannot see it, as a parser would.
#[inline(never)]
pub(crate) fn order(i: u64) -> Order {
    Order { id: i, customer: "customer".to_owned(), amount: i & 0xFFFF, status: i & 3, note: [i as u8; 152] }
}

/// The first operator for orders.
#[inline]
pub(crate) fn tax(mut order: Order) -> Order {
    order.amount += order.amount / 5;
    order
}

/// The filter for orders: three of four.
#[inline]
pub(crate) fn open(order: &Order) -> bool {
    order.status != 3
}

/// The last operator for orders.
#[inline]
pub(crate) fn stamp(mut order: Order) -> Order {
    order.note[0] ^= order.customer.len() as u8;
    order
}

/// What an order adds to the sum.
#[inline]
pub(crate) fn value(order: &Order) -> u64 {
    order.amount + order.id + u64::from(order.note[0]) + u64::from(order.note[151])
}

/// The sum of `items` orders through all three operators, by the plain loop.
pub(crate) fn three_orders(items: u64) -> u64 {
    let mut sum = 0u64;
    for i in 0..items {
        let order = tax(order(i));
        if open(&order) {
            sum = sum.wrapping_add(value(&stamp(order)));
        }
    }
    sum
}

/// The sum of `items` orders through the one operator behind a hop.
pub(crate) fn one_order(items: u64) -> u64 {
    let mut sum = 0u64;
    for i in 0..items {
        sum = sum.wrapping_add(value(&tax(order(i))));
    }
    sum
}

/// Rounds of [`toil`] that take about a microsecond on the machine of `README.md`.
pub(crate) const TOIL_MICROSECOND: u64 = 900;

/// Work for the processor that takes time in proportion to `rounds`.
#[inline]
pub(crate) fn toil(i: u64, rounds: u64) -> u64 {
    let mut x = i | 1;
    for _ in 0..rounds {
        x = x.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (x >> 29);
    }
    x
}

/// The sum of `items` toils.
pub(crate) fn toils(items: u64, rounds: u64) -> u64 {
    (0..items).fold(0u64, |sum, i| sum.wrapping_add(toil(i, rounds)))
}
