// What streamz (Go) needs for the workloads of the engine's benchmark: prints nanoseconds an item and the checksum.
//
//	go run . WORKLOAD ITEMS
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/zoobzio/streamz"
)

type stream = <-chan streamz.Result[uint64]

const factor = 0x9E3779B97F4A7C15

func multiply(_ context.Context, i uint64) (uint64, error) { return i * factor, nil }
func kept(x uint64) bool                                   { return x&1 == 0 }
func mix(_ context.Context, x uint64) (uint64, error)      { return x ^ (x >> 7), nil }

func mapped(ctx context.Context, in stream) stream {
	return streamz.NewMapper(multiply).Process(ctx, in)
}

// The keys of the windows, made beforehand as an application would have them.
var keys [1000]string

// What goes in is summed up here by workloads that leave items out.
var entered uint64

func counted(ctx context.Context, in stream) stream {
	tap := streamz.NewTap(func(r streamz.Result[uint64]) { entered += r.Value() * factor })
	return tap.Process(ctx, in)
}

func sumOf(batches <-chan streamz.Result[[]uint64]) (sum uint64) {
	for batch := range batches {
		for _, i := range batch.Value() {
			sum += i * factor
		}
	}
	return sum
}

var hundred = streamz.BatchConfig{MaxSize: 100, MaxLatency: time.Second}

// Each workload takes the source and gives the checksum.
var workloads = map[string]func(context.Context, stream) uint64{
	"three": func(ctx context.Context, in stream) uint64 {
		filtered := streamz.NewFilter(kept).Process(ctx, mapped(ctx, in))
		return sum(streamz.NewMapper(mix).Process(ctx, filtered))
	},
	"hop": func(ctx context.Context, in stream) uint64 { return sum(mapped(ctx, in)) },
	"filter": func(ctx context.Context, in stream) uint64 {
		return factor * sum(streamz.NewFilter(func(uint64) bool { return true }).Process(ctx, in))
	},
	"tap": func(ctx context.Context, in stream) uint64 {
		for range counted(ctx, in) {
		}
		return entered
	},
	"sample": func(ctx context.Context, in stream) uint64 {
		return factor * sum(streamz.NewSample[uint64](1).Process(ctx, in))
	},
	"async": func(ctx context.Context, in stream) uint64 {
		return sum(streamz.NewAsyncMapper(multiply).WithWorkers(10).Process(ctx, in))
	},
	"batcher": func(ctx context.Context, in stream) uint64 {
		return sumOf(streamz.NewBatcher[uint64](hundred, streamz.RealClock).Process(ctx, in))
	},
	"buffer": func(ctx context.Context, in stream) uint64 {
		return factor * sum(streamz.NewBuffer[uint64](1000).Process(ctx, in))
	},
	"throttle": func(ctx context.Context, in stream) uint64 {
		for range streamz.NewThrottle[uint64](10*time.Millisecond, streamz.RealClock).Process(ctx, counted(ctx, in)) {
		}
		return entered
	},
	"debounce": func(ctx context.Context, in stream) uint64 {
		for range streamz.NewDebounce[uint64](10*time.Millisecond, streamz.RealClock).Process(ctx, counted(ctx, in)) {
		}
		return entered
	},
	"fanout": func(ctx context.Context, in stream) uint64 {
		outs := streamz.NewFanOut[uint64](4).Process(ctx, in)
		for i := range outs {
			outs[i] = mapped(ctx, outs[i])
		}
		return sum(streamz.NewFanIn[uint64]().Process(ctx, outs...))
	},
	"partition": func(ctx context.Context, in stream) uint64 {
		partition, err := streamz.NewRoundRobinPartition[uint64](4, 0)
		if err != nil {
			panic(err)
		}
		outs := partition.Process(ctx, in)
		for i := range outs {
			outs[i] = mapped(ctx, outs[i])
		}
		return sum(streamz.NewFanIn[uint64]().Process(ctx, outs...))
	},
	"switch": func(ctx context.Context, in stream) uint64 {
		routes := streamz.NewSwitchSimple(func(i uint64) uint64 { return i & 1 })
		even, odd := routes.AddRoute(0), routes.AddRoute(1)
		_, errors := routes.Process(ctx, in)
		go func() {
			for range errors {
			}
		}()
		return factor * sum(streamz.NewFanIn[uint64]().Process(ctx, even, odd))
	},
	"complex": func(ctx context.Context, in stream) uint64 {
		buffered := streamz.NewBuffer[uint64](1000).Process(ctx, in)
		filtered := streamz.NewFilter(func(uint64) bool { return true }).Process(ctx, buffered)
		same := func(_ context.Context, i uint64) (uint64, error) { return i, nil }
		async := streamz.NewAsyncMapper(same).WithWorkers(10).Process(ctx, filtered)
		tapped := streamz.NewTap(func(streamz.Result[uint64]) {}).Process(ctx, async)
		batches := streamz.NewBatcher[uint64](hundred, streamz.RealClock).Process(ctx, tapped)
		whole := func(_ context.Context, batch []uint64) ([]uint64, error) { return batch, nil }
		return sumOf(streamz.NewMapper(whole).Process(ctx, batches))
	},
	"tumbling": func(ctx context.Context, in stream) uint64 {
		window := streamz.NewTumblingWindow[uint64](10*time.Millisecond, streamz.RealClock)
		return factor * sum(window.Process(ctx, in))
	},
	// It leaves items out of windows, so the sum is taken of what goes in.
	"sliding": func(ctx context.Context, in stream) uint64 {
		window := streamz.NewSlidingWindow[uint64](20*time.Millisecond, streamz.RealClock).WithSlide(5 * time.Millisecond)
		for range window.Process(ctx, counted(ctx, in)) {
		}
		return entered
	},
	"session": func(ctx context.Context, in stream) uint64 {
		key := func(r streamz.Result[uint64]) string { return keys[r.Value()%uint64(len(keys))] }
		window := streamz.NewSessionWindow(key, streamz.RealClock).WithGap(40 * time.Millisecond)
		return factor * sum(window.Process(ctx, in))
	},
}

func sum(out stream) (sum uint64) {
	for result := range out {
		sum += result.Value()
	}
	return sum
}

func main() {
	if len(os.Args) != 3 || workloads[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: streamz WORKLOAD ITEMS; see main.go for the workloads")
		os.Exit(2)
	}
	items, err := strconv.ParseUint(os.Args[2], 10, 64)
	if err != nil {
		fmt.Fprintln(os.Stderr, "ITEMS:", err)
		os.Exit(2)
	}
	for i := range keys {
		keys[i] = strconv.Itoa(i)
	}
	source := make(chan streamz.Result[uint64])
	began := time.Now()
	go func() {
		for i := uint64(0); i < items; i++ {
			source <- streamz.NewSuccess(i)
		}
		close(source)
	}()
	checksum := workloads[os.Args[1]](context.Background(), source)
	fmt.Println(float64(time.Since(began).Nanoseconds())/float64(items), checksum)
}
