// amqp091-go at the work of the RabbitMQ benchmark: prints seconds, processor seconds and peak KiB.
//
//	go run . ADDRESS QUEUE publish|settle-each|settle-many|both WINDOW BODY WARM COUNT
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const ackEvery = 100

var queue string

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return value
}

func done(err error) { must(0, err) }

// Publishes, each confirmed; waits for the oldest confirm when the window is full.
func publish(channel *amqp.Channel, body []byte, window, count int) {
	ctx := context.Background()
	unconfirmed := make(chan *amqp.DeferredConfirmation, window)
	wait := func() {
		if !(<-unconfirmed).Wait() {
			done(fmt.Errorf("a message was not confirmed"))
		}
	}
	for range count {
		if len(unconfirmed) == window {
			wait()
		}
		message := amqp.Publishing{DeliveryMode: amqp.Persistent, Body: body}
		unconfirmed <- must(channel.PublishWithDeferredConfirmWithContext(ctx, "", queue, false, false, message))
	}
	for len(unconfirmed) > 0 {
		wait()
	}
}

func take(deliveries <-chan amqp.Delivery, many bool, count int) {
	for taken := 1; taken <= count; taken++ {
		delivery := <-deliveries
		if !many || taken%ackEvery == 0 || taken == count {
			done(delivery.Ack(many))
		}
	}
}

func open(address string) *amqp.Channel { return must(must(amqp.Dial(address)).Channel()) }

func usage() (cpu float64, kib int64) {
	var usage syscall.Rusage
	done(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	seconds := func(time syscall.Timeval) float64 { return float64(time.Sec) + float64(time.Usec)/1e6 }
	return seconds(usage.Utime) + seconds(usage.Stime), usage.Maxrss
}

func main() {
	address, act := os.Args[1], os.Args[3]
	queue = os.Args[2]
	number := func(at int) int { return must(strconv.Atoi(os.Args[at])) }
	window, body, warm, count := number(4), make([]byte, number(5)), number(6), number(7)
	publishes, takes := act == "publish" || act == "both", act != "publish"

	var out *amqp.Channel
	var deliveries <-chan amqp.Delivery
	if publishes {
		out = open(address)
		done(out.Confirm(false))
	}
	if takes {
		in := open(address)
		done(in.Qos(window, 0, false))
		deliveries = must(in.Consume(queue, "bench", false, false, false, false, nil))
	}
	run := func(count int) {
		published := make(chan bool)
		if publishes {
			go func() {
				publish(out, body, window, count)
				close(published)
			}()
		} else {
			close(published)
		}
		if takes {
			take(deliveries, act == "settle-many", count)
		}
		<-published
	}
	run(warm)
	began := time.Now()
	before, _ := usage()
	run(count)
	seconds := time.Since(began).Seconds()
	after, peak := usage()
	fmt.Println(seconds, after-before, peak)
}
