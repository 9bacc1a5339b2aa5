//! Why a plan is refused.

/// A rule that a plan breaks. The message says which part of the plan, and why that cannot run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IllegalPlan {
    #[error("the plan has {count} {what}, more than the {max} that are read")]
    TooLarge { what: &'static str, count: usize, max: usize },
    #[error("region {region} names node {node}, the graph has {nodes} nodes")]
    UnknownNode { region: u32, node: u32, nodes: u32 },
    #[error("region {region} is for device {device}, the cluster has {devices} devices")]
    UnknownDevice { region: u32, device: u32, devices: u32 },
    #[error("node {node} ({op}) is in no region; every node needs one place")]
    MissingNode { node: u32, op: String },
    #[error("node {node} ({op}) is in region {first} and again in region {second}")]
    DuplicateNode { node: u32, op: String, first: u32, second: u32 },
    #[error(
        "regions {regions:?} wait for each other: node {from} ({from_op}) must come before node \
         {to} ({to_op}) because {why}; a region runs as a unit"
    )]
    Cycle {
        regions: Vec<u32>,
        from: u32,
        from_op: String,
        to: u32,
        to_op: String,
        why: &'static str,
    },
    #[error(
        "stage {later} of pipeline {pipeline} gives node {from} ({op}) to stage {earlier}, which \
         stands before it; stages pass data on in their order"
    )]
    PipelineBackwards { pipeline: u32, earlier: u32, later: u32, from: u32, op: String },
    #[error(
        "storage {storage} is written on device {first_device} (node {first}) and on device \
         {second_device} (node {second}); the writes of one storage need one device"
    )]
    WrittenOnTwoDevices {
        storage: u32,
        first: u32,
        first_device: u32,
        second: u32,
        second_device: u32,
    },
    #[error(
        "nodes {first} ({first_op}) and {second} ({second_op}) use the random generator on \
         devices {first_device} and {second_device}; its stream is exact on one device only"
    )]
    RandomOnTwoDevices {
        first: u32,
        first_op: String,
        first_device: u32,
        second: u32,
        second_op: String,
        second_device: u32,
    },
    #[error(
        "device {device} ({name}) would hold {needed_bytes} bytes at node {node} ({op}), it has \
         {free_bytes} free"
    )]
    OverMemory {
        device: u32,
        name: String,
        needed_bytes: u64,
        free_bytes: u64,
        node: u32,
        op: String,
    },
    #[error(
        "directive {index}: `{kind}` is none of pin, keep, spill, prefetch, evict, replicate, recompute"
    )]
    UnknownDirective { index: u32, kind: String },
    #[error("directive {index} (`{kind}`) names storage {storage}, the graph has {storages}")]
    UnknownStorage { index: u32, kind: String, storage: u32, storages: u32 },
    #[error(
        "directive {index} (`{kind}`) names device {device}, the cluster has {devices} devices"
    )]
    UnknownDirectiveDevice { index: u32, kind: String, device: u32, devices: u32 },
    #[error(
        "directives {first} (`{first_kind}`) and {second} (`{second_kind}`) want opposite things \
         of storage {storage} on device {device}"
    )]
    Contradiction {
        first: u32,
        first_kind: String,
        second: u32,
        second_kind: String,
        storage: u32,
        device: u32,
    },
    #[error(
        "directive {index} (`{kind}`) wants a second copy of storage {storage} on device {device}, \
         but node {writer} writes it on device {written_on}"
    )]
    CopyOfWritten {
        index: u32,
        kind: String,
        storage: u32,
        device: u32,
        writer: u32,
        written_on: u32,
    },
    #[error(
        "directive {index} would evict storage {storage} from device {device}, where the only \
         copy of it is; only unchanged weights can be had again (`spill` keeps the content)"
    )]
    LosesContent { index: u32, storage: u32, device: u32 },
    #[error("directive {index} cannot recompute storage {storage} on device {device}: {why}")]
    CannotRecompute { index: u32, storage: u32, device: u32, why: &'static str },
    #[error("the transfer order names value {value}, the graph has {values}")]
    UnknownValue { value: u32, values: u32 },
    #[error("the transfer order names value {value} twice")]
    DuplicateValue { value: u32 },
    #[error("device {to} needs value {value} from device {from}, and no links lead there")]
    Unreachable { value: u32, from: u32, to: u32 },
}
