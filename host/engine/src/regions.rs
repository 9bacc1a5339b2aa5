//! The shared regions of a session, and the upload bytes the client waits to get back.

use std::collections::BTreeMap;

use genie_wire::control::Released;
use genie_wire::limits::{REGION_BYTES_MAX, REGIONS_MAX};
use genie_wire::record::RegionSpan;

use crate::SessionError;

#[derive(Debug)]
struct Region {
    bytes: u64,
    /// Uploaded and not yet released by the node.
    unreleased: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Regions {
    by_id: BTreeMap<u32, Region>,
}

impl Regions {
    pub(crate) fn register(&mut self, id: u32, bytes: u64) -> Result<(), SessionError> {
        if self.by_id.contains_key(&id) {
            return Err(SessionError::RegionTaken(id));
        }
        let value = self.by_id.len() as u64 + 1;
        if value > REGIONS_MAX as u64 {
            let max = REGIONS_MAX as u64;
            return Err(SessionError::Limit { what: "shared regions", value, max });
        }
        if bytes > REGION_BYTES_MAX {
            let max = REGION_BYTES_MAX;
            return Err(SessionError::Limit { what: "region bytes", value: bytes, max });
        }
        self.by_id.insert(id, Region { bytes, unreleased: 0 });
        Ok(())
    }

    pub(crate) fn check(&self, span: RegionSpan, len: u64) -> Result<(), SessionError> {
        let region = span.region;
        let known = self.by_id.get(&region).ok_or(SessionError::NoSuchRegion(region))?;
        match span.offset.checked_add(len) {
            Some(end) if end <= known.bytes => Ok(()),
            _ => Err(SessionError::OutsideRegion { region, offset: span.offset, len }),
        }
    }

    pub(crate) fn uploaded(&mut self, region: u32, len: u64) {
        if let Some(region) = self.by_id.get_mut(&region) {
            region.unreleased = region.unreleased.saturating_add(len);
        }
    }

    pub(crate) fn released(&mut self, region: u32, len: u64) {
        if let Some(region) = self.by_id.get_mut(&region) {
            region.unreleased = region.unreleased.saturating_sub(len);
        }
    }

    /// Gives back all bytes in flight: the node that would have consumed them is gone.
    pub(crate) fn release_all(&mut self) -> Vec<Released> {
        let mut released = Vec::new();
        for (id, region) in &mut self.by_id {
            let bytes = std::mem::take(&mut region.unreleased);
            if bytes > 0 {
                released.push(Released { region: *id, bytes });
            }
        }
        released
    }
}
