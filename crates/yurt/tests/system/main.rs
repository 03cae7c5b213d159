//! The whole product as a user has it: the `yurt` binary, its processes, and an unmodified `kubectl`.

mod fixture;

mod bootstrap;
mod doctor;
mod durability;
mod faults;
mod hub;
mod link_cut;
mod manager;
mod node_conversion;
mod ota;
mod peers;
mod pool;
mod processes;
mod real_cluster;
mod real_node;
mod reboot;
mod recorded;
mod session;
mod slices;
mod topology;
mod tunnel;
