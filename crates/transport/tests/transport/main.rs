//! Servers and clients against each other, in one process.

mod bodies;
mod clients;
mod fixture;
mod serving;
