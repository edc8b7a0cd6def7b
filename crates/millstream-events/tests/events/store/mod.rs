mod appending;
mod faults;
mod reading;
mod subscribing;
