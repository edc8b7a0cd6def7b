module millstream.dev/bench/amqp-go

go 1.26.8

require github.com/rabbitmq/amqp091-go v1.10.0
