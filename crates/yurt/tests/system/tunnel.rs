//! The tunnel as a user has it: processes, real kubectl, a real kube-apiserver.

mod bench;
mod egress;
mod fleet;
mod kubectl;
mod operations;
mod pair;
mod sessions;
mod standalone;
