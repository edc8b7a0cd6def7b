//! What a stream has done so far, written by its flow and read by its watchers.
