mod appending;
mod faults;
mod grouped;
mod reading;
mod subscribing;
