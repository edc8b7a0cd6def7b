//! The pieces of a body, and how long they are waited for.

use std::io;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Broken, Part};
use crate::http1::io::SLOW;
use crate::http1::watch::Waits;
use crate::meter::Meter;
use crate::pieces::{Piece, Pieces, Taker};

/// Hands a part on as a piece; true if the receiver was slow.
pub(super) async fn send(
    pieces: &mut Pieces,
    part: Part,
    meter: &mut Meter,
    waits: &Waits<'_>,
) -> Result<bool, Broken> {
    let piece = Piece { data: part.data.freeze(), trailers: part.trailers, last: part.last };
    let Some(piece) = pieces.try_send(piece).map_err(|()| Broken::Gone)? else {
        return Ok(false);
    };
    let since = Instant::now();
    meter.blocks(since);
    let taker = pieces.taker();
    let sent = {
        let mut sending = pin!(pieces.send(piece));
        steady(taker.as_deref(), waits, |cx| sending.as_mut().poll(cx)).await
    };
    let waited = since.elapsed();
    meter.blocked(waited);
    sent?;
    Ok(waited > SLOW)
}

/// Waits until a client has taken an answer whose last piece was sent.
pub(crate) async fn taken(pieces: &Pieces, meter: &mut Meter, idle: Duration) -> Result<(), Broken> {
    // Hyper's task is about to run, and most answers have ended then: no timer for those.
    yield_now().await;
    if pieces.is_awaited() { Box::pin(ended(pieces, meter, idle)).await } else { Ok(()) }
}

/// The same where it takes longer. In a box, as it is at most once for each answer.
async fn ended(pieces: &Pieces, meter: &mut Meter, idle: Duration) -> Result<(), Broken> {
    // Who takes it at once has held nothing up.
    if let Ok(ended) = timeout(SLOW, pieces.taken()).await {
        return ended.map_err(|()| Broken::Gone);
    }
    let since = Instant::now();
    meter.blocks(since);
    let taker = pieces.taker();
    let mut ending = pin!(pieces.taken());
    let ended = steady(taker.as_deref(), &Waits::of(idle), |cx| ending.as_mut().poll(cx)).await;
    meter.blocked(since.elapsed());
    ended
}

/// Waits for a receiver as long as it takes something now and then. Nobody knows when it took the last bit: so it is looked twice as
/// often as is told.
async fn steady(
    taker: Option<&Taker>,
    waits: &Waits<'_>,
    mut work: impl FnMut(&mut Context<'_>) -> Poll<Result<(), ()>>,
) -> Result<(), Broken> {
    let half = Waits { idle: waits.idle / 2, client: waits.client };
    let taken = || taker.map_or(0, Taker::taken);
    let (mut before, mut still) = (taken(), 0);
    let mut alarm = pin!(sleep_until(Instant::now()));
    loop {
        match half.during(alarm.as_mut(), |cx| work(cx).map(Ok)).await {
            Ok(done) => return done.map_err(|()| Broken::Gone),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                let now = taken();
                still = if now == before { still + 1 } else { 0 };
                before = now;
                if still == 2 {
                    return Err(Broken::SinkIdle(waits.idle));
                }
            }
            Err(error) => return Err(Broken::sink(error, waits.idle)),
        }
    }
}
