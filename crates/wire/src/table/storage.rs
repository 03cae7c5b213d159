//! Volumes, claims, classes and drivers.

use super::{AGE, BuiltIn, Fields, NAME, boolean, built_in, fields::or_none, integer, text};
use serde_json::{Value, json};

const GROUP: &str = "storage.k8s.io";

pub(super) const PRINTERS: &[BuiltIn] = &[
    built_in(
        "",
        "PersistentVolume",
        &[
            NAME,
            text("Capacity", "Size of the volume."),
            text("Access Modes", "How the volume can be mounted."),
            text("Reclaim Policy", "What happens when the claim is gone."),
            text("Status", "Phase of the volume."),
            text("Claim", "The claim that is bound to the volume."),
            text("StorageClass", "Storage class of the volume."),
            text("VolumeAttributesClass", "Attributes class of the volume."),
            text("Reason", "Why the volume is in its phase."),
            AGE,
            text(
                "VolumeMode",
                "Whether it is a file system or a block device.",
            )
            .wide(),
        ],
        persistent_volume,
    ),
    built_in(
        "",
        "PersistentVolumeClaim",
        &[
            NAME,
            text("Status", "Phase of the claim."),
            text("Volume", "The volume that is bound to the claim."),
            text("Capacity", "Size of the volume."),
            text("Access Modes", "How the volume can be mounted."),
            text("StorageClass", "Storage class of the claim."),
            text("VolumeAttributesClass", "Attributes class of the claim."),
            AGE,
            text(
                "VolumeMode",
                "Whether it is a file system or a block device.",
            )
            .wide(),
        ],
        persistent_volume_claim,
    ),
    built_in(
        GROUP,
        "StorageClass",
        &[
            NAME,
            text("Provisioner", "What makes the volumes."),
            text(
                "ReclaimPolicy",
                "What happens to a volume whose claim is gone.",
            ),
            text("VolumeBindingMode", "When claims are bound."),
            text("AllowVolumeExpansion", "Whether volumes can grow."),
            AGE,
        ],
        storage_class,
    ),
    built_in(
        GROUP,
        "VolumeAttributesClass",
        &[NAME, text("DriverName", "The CSI driver."), AGE],
        volume_attributes_class,
    ),
    built_in(
        GROUP,
        "VolumeAttachment",
        &[
            NAME,
            text("Attacher", "What attaches the volume.").name_format(),
            text("PV", "The volume."),
            text("Node", "The node it is attached to."),
            boolean("Attached", "Whether it is attached."),
            AGE,
        ],
        volume_attachment,
    ),
    built_in(
        GROUP,
        "CSINode",
        &[
            NAME,
            integer("Drivers", "CSI drivers registered on the node."),
            AGE,
        ],
        csi_node,
    ),
    built_in(
        GROUP,
        "CSIDriver",
        &[
            NAME,
            boolean("AttachRequired", "Whether volumes must be attached."),
            boolean("PodInfoOnMount", "Whether the driver is told of the pod."),
            boolean("StorageCapacity", "Whether the driver reports capacity."),
            text(
                "TokenRequests",
                "Audiences of tokens that the driver needs.",
            ),
            boolean(
                "RequiresRepublish",
                "Whether volumes are published again and again.",
            ),
            text("Modes", "Volume lifecycles that the driver supports."),
            AGE,
        ],
        csi_driver,
    ),
    built_in(
        GROUP,
        "CSIStorageCapacity",
        &[
            NAME,
            text("StorageClassName", "The storage class."),
            text("Capacity", "Capacity that is available."),
        ],
        csi_storage_capacity,
    ),
];

/// Access modes by their abbreviations, in a fixed order.
fn access_modes(object: Fields<'_>, path: &str) -> String {
    let modes = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let shown: Vec<&str> = modes
        .into_iter()
        .filter(|(mode, _)| object.list(path).any(|m| m.as_text() == *mode))
        .map(|(_, short)| short)
        .collect();
    shown.join(",")
}

/// The storage class; an old annotation goes before the field.
fn class(object: Fields<'_>) -> String {
    let annotation = object
        .at("metadata.annotations")
        .field("volume.beta.kubernetes.io/storage-class");
    match annotation.as_text() {
        class if class.is_empty() => object.text("spec.storageClassName"),
        class => class,
    }
}

/// The name, marked when the class is the default one.
fn class_name(object: Fields<'_>, annotations: &[&str]) -> Value {
    let default = annotations.iter().any(|annotation| {
        object
            .at("metadata.annotations")
            .field(annotation)
            .as_text()
            == "true"
    });
    let name = object.text("metadata.name");
    json!(match default {
        true => format!("{name} (default)"),
        false => name,
    })
}

fn phase(object: Fields<'_>) -> String {
    match object.is_being_deleted() {
        true => "Terminating".to_owned(),
        false => object.text("status.phase"),
    }
}

fn persistent_volume(object: Fields<'_>, now: i64) -> Vec<Value> {
    let claim = match object.exists("spec.claimRef") {
        true => format!(
            "{}/{}",
            object.text("spec.claimRef.namespace"),
            object.text("spec.claimRef.name")
        ),
        false => String::new(),
    };
    vec![
        object.name(),
        json!(object.text_or("spec.capacity.storage", "0")),
        json!(access_modes(object, "spec.accessModes")),
        json!(object.text("spec.persistentVolumeReclaimPolicy")),
        json!(phase(object)),
        json!(claim),
        json!(class(object)),
        json!(object.text_or("spec.volumeAttributesClassName", "<unset>")),
        json!(object.text("status.reason")),
        object.age(now),
        json!(object.text_or("spec.volumeMode", "<unset>")),
    ]
}

fn persistent_volume_claim(object: Fields<'_>, now: i64) -> Vec<Value> {
    let bound = !object.text("spec.volumeName").is_empty();
    let (capacity, modes) = match bound {
        true => (
            object.text_or("status.capacity.storage", "0"),
            access_modes(object, "status.accessModes"),
        ),
        false => Default::default(),
    };
    vec![
        object.name(),
        json!(phase(object)),
        json!(object.text("spec.volumeName")),
        json!(capacity),
        json!(modes),
        json!(class(object)),
        json!(object.text_or("spec.volumeAttributesClassName", "<unset>")),
        object.age(now),
        json!(object.text_or("spec.volumeMode", "<unset>")),
    ]
}

fn storage_class(object: Fields<'_>, now: i64) -> Vec<Value> {
    let annotations = [
        "storageclass.kubernetes.io/is-default-class",
        "storageclass.beta.kubernetes.io/is-default-class",
    ];
    vec![
        class_name(object, &annotations),
        json!(object.text("provisioner")),
        json!(object.text_or("reclaimPolicy", "Delete")),
        json!(object.text_or("volumeBindingMode", "Immediate")),
        json!(object.bool_or("allowVolumeExpansion", false)),
        object.age(now),
    ]
}

fn volume_attributes_class(object: Fields<'_>, now: i64) -> Vec<Value> {
    let annotations = ["volumeattributesclass.alpha.kubernetes.io/is-default-class"];
    vec![
        class_name(object, &annotations),
        json!(object.text("driverName")),
        object.age(now),
    ]
}

fn volume_attachment(object: Fields<'_>, now: i64) -> Vec<Value> {
    vec![
        object.name(),
        json!(object.text("spec.attacher")),
        json!(object.text("spec.source.persistentVolumeName")),
        json!(object.text("spec.nodeName")),
        json!(object.bool_or("status.attached", false)),
        object.age(now),
    ]
}

fn csi_node(object: Fields<'_>, now: i64) -> Vec<Value> {
    vec![
        object.name(),
        json!(object.count("spec.drivers")),
        object.age(now),
    ]
}

fn csi_driver(object: Fields<'_>, now: i64) -> Vec<Value> {
    let audiences: Vec<String> = object
        .list("spec.tokenRequests")
        .map(|request| request.text("audience"))
        .collect();
    let token_requests = match object.exists("spec.tokenRequests") {
        true => audiences.join(","),
        false => "<unset>".to_owned(),
    };
    vec![
        object.name(),
        json!(object.bool_or("spec.attachRequired", true)),
        json!(object.bool_or("spec.podInfoOnMount", false)),
        json!(object.bool_or("spec.storageCapacity", false)),
        json!(token_requests),
        json!(object.bool_or("spec.requiresRepublish", false)),
        json!(or_none(object.joined("spec.volumeLifecycleModes", ","))),
        object.age(now),
    ]
}

fn csi_storage_capacity(object: Fields<'_>, _now: i64) -> Vec<Value> {
    vec![
        object.name(),
        json!(object.text("storageClassName")),
        json!(object.text_or("capacity", "<unset>")),
    ]
}
