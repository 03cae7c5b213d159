//! The node proxy: an edge node that outlives its cloud link.
//!
//! Start with [`query::Query`] (what a caller wants, apart from representation), then `route` (who answers),
//! `upstream` and `link` (the cloud side), `cache` (what the node knows), `offline` (answers without the cloud),
//! `journal` (what the node wrote meanwhile), `proxy` (the pipeline that ties them together).

pub mod cache;
pub mod caller;
pub mod journal;
pub mod offline;
pub mod query;
