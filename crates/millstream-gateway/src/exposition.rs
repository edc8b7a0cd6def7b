//! The metrics of a gateway in the Prometheus text format. `docs/gateway.md` lists them; a test holds the two together.

use millstream_observe::{Durations, Exposition, Metric, Value, labels, metrics};

use crate::meter::{DURATION_BOUNDS, Direction};
use crate::tally::{GatewaySnapshot, StreamsSnapshot, UpstreamSnapshot};

labels!(/** Labels of what is counted by reason. */ ByReason: reason);
labels!(/** Labels of what ended in one way or another. */ ByResult: outcome);
labels!(/** Labels of the streams of a route in one direction. */ ByStream: route, direction);
labels!(/** Labels of streams that ended. */ ByOutcome: route, direction, outcome);
labels!(/** Labels of answers. */ ByClass: route, class);
labels!(/** Labels of a server. */ ByUpstream: route, upstream);
labels!(/** Labels of a tier of the pool. */ ByTier: size);

type Stream = ByStream<'static>;
type Upstream = ByUpstream<'static>;
type Tier = ByTier<'static>;

metrics! { "millstream_gateway_":
    CONNECTIONS: () = counter "connections_total" "Connections from clients.";
    CONNECTIONS_OPEN: () = gauge "connections_open" "Connections from clients that are open.";
    REFUSED: ByReason<'static> = counter "refused_total" "What was refused or given up, by reason.";
    ANSWERS: ByClass<'static> = counter "answers_total" "Answers, by the first digit of their status.";
    STREAMS: Stream = counter "streams_total" "Bodies that began, by direction.";
    STREAMS_ENDED: ByOutcome<'static> = counter "streams_ended_total" "Bodies that ended, by outcome.";
    STREAM_BYTES: Stream = counter "stream_bytes_total" "Payload bytes read to be handed on.";
    STREAM_CHUNKS: Stream = counter "stream_chunks_total" "Chunks read to be handed on.";
    BACKPRESSURE_EVENTS: Stream =
        counter "stream_backpressure_events_total" "Times that a receiver was not ready to take more.";
    BACKPRESSURE_SECONDS: Stream =
        counter "stream_backpressure_seconds_total" "Time that streams were held by their receiver.";
    SOURCE_WAIT_SECONDS: Stream =
        counter "stream_source_wait_seconds_total" "Time that streams waited for their sender.";
    FIRST_BYTES: Stream = counter "stream_first_bytes_total" "Bodies whose first byte has come.";
    FIRST_BYTE_SECONDS: Stream =
        counter "stream_first_byte_seconds_total" "Time from the start of bodies to their first byte.";
    STREAM_SECONDS: Stream =
        histogram "stream_seconds" "How long bodies took from start to end, of those that ended.";
    UPSTREAM_IN_FLIGHT: Upstream = gauge "upstream_in_flight" "Requests that a server has not answered yet.";
    UPSTREAM_CONNECTED: Upstream = counter "upstream_connections_total" "Connections made to a server.";
    UPSTREAM_REUSED: Upstream =
        counter "upstream_connections_reused_total" "Requests to a server that found a connection.";
    UPSTREAM_FAILED: Upstream =
        counter "upstream_connections_failed_total" "Connections to a server that could not be made.";
    UPSTREAM_HEALTHY: Upstream = gauge "upstream_healthy" "1 if requests go to the server, 0 if not.";
    UPSTREAM_EXCESS: () =
        counter "upstream_excess_total" "Answers of upstreams that were followed by what nobody asked for.";
    RELOADS: ByResult<'static> =
        counter "reloads_total" "Configurations that came while it ran: `applied` or `refused`.";
    POOL_ENABLED: () = gauge "pool_enabled" "1 if buffers are kept for the next lease.";
    POOL_BYTES: () = gauge "pool_bytes" "Bytes of all buffers, leased and idle.";
    POOL_BYTES_IN_USE: () = gauge "pool_bytes_in_use" "Bytes of the buffers that are leased.";
    POOL_BYTES_MAX: () = gauge "pool_bytes_max" "The bound of that.";
    POOL_BYTES_HIGH: () = gauge "pool_bytes_high_water" "The most bytes of all buffers at once.";
    POOL_OVERSIZE: () = counter "pool_oversize_total" "Leases of more bytes than any buffer has.";
    POOL_BUFFERS: Tier = gauge "pool_buffers" "Buffers of a tier, leased and idle.";
    POOL_IN_USE: Tier = gauge "pool_buffers_in_use" "Buffers of a tier that are leased.";
    POOL_HIGH: Tier = gauge "pool_buffers_high_water" "The most buffers of a tier at once.";
    POOL_HITS: Tier = counter "pool_hits_total" "Leases of a tier that found an idle buffer.";
    POOL_MISSES: Tier = counter "pool_misses_total" "Leases of a tier for which a buffer was made.";
    POOL_WAITS: Tier = counter "pool_waits_total" "Leases of a tier that had to wait for room.";
    POOL_SMALLER: Tier =
        counter "pool_smaller_total" "Leases of a tier for which there was no room, and that got a smaller one.";
}

/// The exposition of a gateway.
pub fn text(gateway: &GatewaySnapshot) -> String {
    let mut out = Exposition::default();
    out.show(&CONNECTIONS, [((), Value::Count(gateway.connections))]);
    out.show(&CONNECTIONS_OPEN, [((), Value::Count(gateway.connections_open))]);
    out.show(&REFUSED, gateway.refused.iter().map(|(reason, n)| (ByReason { reason }, Value::Count(*n))));
    out.show(
        &ANSWERS,
        gateway.answers.iter().flat_map(|answers| {
            let route = &answers.route;
            answers.by_class.iter().map(move |(class, n)| (ByClass { route, class }, Value::Count(*n)))
        }),
    );
    streams(&mut out, gateway);
    upstreams(&mut out, gateway);
    out.show(&UPSTREAM_EXCESS, [((), Value::Count(gateway.upstream_excess))]);
    out.show(&RELOADS, gateway.reloads.iter().map(|(outcome, n)| (ByResult { outcome }, Value::Count(*n))));
    pool(&mut out, gateway);
    out.finish()
}

fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Request => "request",
        Direction::Response => "response",
    }
}

fn labels_of(stream: &StreamsSnapshot) -> ByStream<'_> {
    ByStream { route: &stream.route, direction: direction(stream.direction) }
}

fn streams(out: &mut Exposition, gateway: &GatewaySnapshot) {
    let mut show = |metric: &Metric<Stream>, value: fn(&StreamsSnapshot) -> Value| {
        let series = gateway.streams.iter().map(|stream| (labels_of(stream), value(stream)));
        out.show(metric, series);
    };
    show(&STREAMS, |stream| Value::Count(stream.started));
    show(&STREAM_BYTES, |stream| Value::Count(stream.bytes));
    show(&STREAM_CHUNKS, |stream| Value::Count(stream.chunks));
    show(&BACKPRESSURE_EVENTS, |stream| Value::Count(stream.backpressure_events));
    show(&BACKPRESSURE_SECONDS, |stream| Value::Number(stream.backpressure_time.as_secs_f64()));
    show(&SOURCE_WAIT_SECONDS, |stream| Value::Number(stream.source_wait.as_secs_f64()));
    show(&FIRST_BYTES, |stream| Value::Count(stream.first_bytes));
    show(&FIRST_BYTE_SECONDS, |stream| Value::Number(stream.first_byte_time.as_secs_f64()));
    out.show_durations(
        &STREAM_SECONDS,
        gateway.streams.iter().map(|stream| {
            let (bounds, counts) = (&DURATION_BOUNDS[..], &stream.durations[..]);
            (labels_of(stream), Durations { bounds, counts, sum: stream.duration })
        }),
    );
    out.show(
        &STREAMS_ENDED,
        gateway.streams.iter().flat_map(|stream| {
            let (route, direction) = (&stream.route, direction(stream.direction));
            stream
                .ended
                .iter()
                .map(move |(outcome, n)| (ByOutcome { route, direction, outcome }, Value::Count(*n)))
        }),
    );
}

fn upstreams(out: &mut Exposition, gateway: &GatewaySnapshot) {
    let mut show = |metric: &Metric<Upstream>, value: fn(&UpstreamSnapshot) -> u64| {
        out.show(
            metric,
            gateway.upstreams.iter().map(|server| {
                (ByUpstream { route: &server.route, upstream: &server.upstream }, Value::Count(value(server)))
            }),
        );
    };
    show(&UPSTREAM_IN_FLIGHT, |server| server.in_flight);
    show(&UPSTREAM_CONNECTED, |server| server.connected);
    show(&UPSTREAM_REUSED, |server| server.reused);
    show(&UPSTREAM_FAILED, |server| server.failed);
    show(&UPSTREAM_HEALTHY, |server| server.healthy.into());
}

fn pool(out: &mut Exposition, gateway: &GatewaySnapshot) {
    let pool = &gateway.pool;
    out.show(&POOL_ENABLED, [((), Value::Count(pool.enabled.into()))]);
    out.show(&POOL_BYTES, [((), Value::Count(pool.bytes))]);
    out.show(&POOL_BYTES_IN_USE, [((), Value::Count(pool.bytes_in_use))]);
    out.show(&POOL_BYTES_MAX, [((), Value::Count(pool.bytes_max))]);
    out.show(&POOL_BYTES_HIGH, [((), Value::Count(pool.bytes_high_water))]);
    out.show(&POOL_OVERSIZE, [((), Value::Count(pool.oversize))]);
    let sizes: Vec<String> = pool.tiers.iter().map(|tier| tier.size.to_string()).collect();
    let mut show = |metric: &Metric<Tier>, value: fn(&crate::TierSnapshot) -> u64| {
        let tiers = pool.tiers.iter().zip(&sizes);
        out.show(metric, tiers.map(|(tier, size)| (ByTier { size }, Value::Count(value(tier)))));
    };
    show(&POOL_BUFFERS, |tier| tier.total);
    show(&POOL_IN_USE, |tier| tier.in_use);
    show(&POOL_HIGH, |tier| tier.high_water);
    show(&POOL_HITS, |tier| tier.hits);
    show(&POOL_MISSES, |tier| tier.misses);
    show(&POOL_WAITS, |tier| tier.waits);
    show(&POOL_SMALLER, |tier| tier.smaller);
}
