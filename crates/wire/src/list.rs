//! Lists as bytes: split into complete objects, and joined from them, without decoding the items.

use crate::{
    Encoding, Gvk,
    object::{Malformed, Object},
};
use bytes::Bytes;

/// A list taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitList {
    /// `PodList` etc.
    pub gvk: Gvk,
    /// `""` when absent.
    pub resource_version: String,
    /// `""` when the list is complete.
    pub continue_token: String,
    /// `remainingItemCount`, when given.
    pub remaining: Option<i64>,
    /// Each item as a complete object: protobuf items in their own envelope, JSON items with apiVersion and
    /// kind filled in from the list's.
    pub items: Vec<Object>,
}

/// Takes a list apart. `Status`, `Table` and single objects are `Malformed` ("not a list").
pub fn split(_bytes: &Bytes, _encoding: Encoding) -> Result<SplitList, Malformed> {
    unimplemented!()
}

/// The head of a list that is joined from items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListHead {
    /// `PodList` etc.
    pub gvk: Gvk,
    /// Resource version of the list.
    pub resource_version: String,
    /// `""` when complete.
    pub continue_token: String,
    /// `remainingItemCount`.
    pub remaining: Option<i64>,
}

/// Joins items (each in `encoding`; the caller transcodes others first) to a list body in chunks, so that a
/// large list is never held twice: the first chunk is the head, one chunk per item, the last the tail.
/// Protobuf items lose their envelope; JSON items keep apiVersion and kind (which clients ignore).
pub fn join(
    _head: &ListHead,
    _encoding: Encoding,
    _items: &[Object],
) -> Result<Vec<Bytes>, Malformed> {
    unimplemented!()
}
