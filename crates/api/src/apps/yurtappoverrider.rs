//! YurtAppOverrider v1alpha1: what is different in some pools of a set or daemon. It has no spec and no status. Tweaks of YurtAppSet
//! v1beta1 say the same ([`crate::translation::tweaks_of`]).

use super::yurtappset::Patch;
use crate::{meta::resource, schema::types};

types! {
    /// What is different in some pools of a YurtAppSet or YurtAppDaemon.
    pub struct YurtAppOverrider {
        /// Of whom. Immutable, and of one overrider only.
        subject: Subject,
        /// What is different.
        [required] entries: Vec<Entry>,
    }

    /// A YurtAppSet or YurtAppDaemon of the same namespace.
    pub struct Subject {
        /// Its API version.
        api_version: Option<String>,
        /// YurtAppSet or YurtAppDaemon.
        kind: Option<String>,
        /// Its name.
        name: String,
    }

    /// What is different in some pools.
    pub struct Entry {
        /// The pools: names, * for all, and -name for all but that one.
        [required] pools: Vec<String>,
        /// Images and replicas.
        items: Vec<Item>,
        /// What else is different: JSON patches; {{nodepool}} in a value stands for the name of the pool.
        patches: Vec<Patch>,
    }

    /// One of the two.
    pub struct Item {
        /// The image of a container.
        image: Option<ImageItem>,
        /// How many pods each of these pools has.
        replicas: Option<i32>,
    }

    /// The image of a container.
    pub struct ImageItem {
        /// The container.
        container_name: String,
        /// The image that replaces the template's.
        image_claim: String,
    }
}

resource! {
    YurtAppOverrider: super::GROUP, "v1alpha1", "YurtAppOverrider", "yurtappoverriders", true;
}
