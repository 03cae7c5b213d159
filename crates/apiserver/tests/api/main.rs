//! The API over requests, without a network.

mod authorization;
mod client;
mod connect;
mod conversions;
mod durability;
mod encodings;
mod errors;
mod hook;
mod lists;
mod namespaces;
mod openapi;
mod pods;
mod policies;
mod quotas;
mod tokens;
mod watches;
mod webhooks;
mod writes;
