module millstream.dev/bench/streamz

go 1.26.8

require github.com/zoobzio/streamz v1.0.6

require github.com/zoobzio/clockz v1.0.0 // indirect
