//! What the node shows otherwise than the cloud has it.

use crate::journal::change::Change;
use std::sync::Arc;
use yurt_wire::Object;

/// What the node shows of an object on top of the cloud's state.
#[derive(Clone, Debug)]
pub(crate) struct Overlay {
    /// The object as the node sees it; as it was seen last when it was deleted here.
    pub(crate) object: Object,
    /// Why it is seen so.
    pub(crate) layer: Layer,
}

/// Where the node's view of an object comes from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Layer {
    /// Created here.
    Created,
    /// Changed here, by what is to be put on a newer cloud state.
    Changed(Arc<Change>),
    /// Deleted here, when it had this uid: nothing shows.
    Deleted { uid: String },
    /// Worked out from the cloud's state at this revision and from what changed here.
    Derived { base: u64 },
}

impl Overlay {
    /// What is left of it on a newer state of the cloud.
    pub(super) fn on_newer(&self, object: &Object) -> Option<Self> {
        match &self.layer {
            // Replayed, or created by somebody else meanwhile: the cloud's word holds.
            Layer::Created => None,
            Layer::Changed(change) => Some(Self {
                object: change.rebase(object)?,
                layer: self.layer.clone(),
            }),
            Layer::Deleted { uid } => {
                let same = object.meta().is_ok_and(|meta| meta.uid == *uid);
                same.then(|| Self {
                    object: object.clone(),
                    layer: self.layer.clone(),
                })
            }
            // Whoever worked it out does so again.
            Layer::Derived { .. } => Some(self.clone()),
        }
    }
}
