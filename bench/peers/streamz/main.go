// What streamz (Go) needs for the workloads of the engine's benchmark: prints nanoseconds an item and the checksum.
//
//	go run . three|hop ITEMS
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/zoobzio/streamz"
)

func multiply(_ context.Context, i uint64) (uint64, error) { return i * 0x9E3779B97F4A7C15, nil }
func kept(x uint64) bool                                   { return x&1 == 0 }
func mix(_ context.Context, x uint64) (uint64, error)      { return x ^ (x >> 7), nil }

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: streamz three|hop ITEMS")
		os.Exit(2)
	}
	items, err := strconv.ParseUint(os.Args[2], 10, 64)
	if err != nil {
		fmt.Fprintln(os.Stderr, "ITEMS:", err)
		os.Exit(2)
	}
	ctx := context.Background()
	source := make(chan streamz.Result[uint64])
	began := time.Now()
	go func() {
		for i := uint64(0); i < items; i++ {
			source <- streamz.NewSuccess(i)
		}
		close(source)
	}()
	var out <-chan streamz.Result[uint64]
	switch os.Args[1] {
	case "three":
		out = streamz.NewMapper(mix).Process(ctx, streamz.NewFilter(kept).Process(ctx, streamz.NewMapper(multiply).Process(ctx, source)))
	case "hop":
		out = streamz.NewMapper(multiply).Process(ctx, source)
	default:
		fmt.Fprintln(os.Stderr, "no workload is called", os.Args[1])
		os.Exit(2)
	}
	var sum uint64
	for result := range out {
		sum += result.Value()
	}
	fmt.Println(float64(time.Since(began).Nanoseconds())/float64(items), sum)
}
