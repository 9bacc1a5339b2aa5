//! Upload credits: tells the peer which bytes of its region it may reuse.

use genie_wire::control::Released;
use genie_wire::frame::FrameKind;
use prost::Message;

use crate::Outbox;

/// Credits are sent at the latest when they reach this share of the region.
const REGION_SHARE: u64 = 8;

/// Consumed bytes of one region that the peer was not told of yet.
#[derive(Debug, Default)]
pub(crate) struct Credits {
    region: u32,
    bytes: u64,
}

impl Credits {
    pub(crate) fn add(
        &mut self,
        region: u32,
        region_bytes: u64,
        bytes: u64,
        outbox: &mut dyn Outbox,
    ) {
        if self.region != region {
            self.send(outbox);
            self.region = region;
        }
        self.bytes += bytes;
        if self.bytes >= region_bytes / REGION_SHARE {
            self.send(outbox);
        }
    }

    /// Call when the session has nothing more to do now.
    pub(crate) fn send(&mut self, outbox: &mut dyn Outbox) {
        if self.bytes > 0 {
            let released = Released { region: self.region, bytes: self.bytes };
            outbox.send(FrameKind::Released, &released.encode_to_vec());
            self.bytes = 0;
        }
    }
}
