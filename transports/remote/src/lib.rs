//! One session's link to a process elsewhere.
//!
//! A [`RemoteLink`] is a [`Link`](genie_transport::Link) like the one over a Unix socket: frames
//! arrive whole and in order, and tensors lie in regions that both ends name by (region, offset).
//! Here the ends share no memory: each keeps a copy of a region, and what one end puts in it is
//! **posted as a payload** and written to the other's copy by a data transport. A frame that was
//! sent after a payload is not delivered before that payload has arrived, whichever way either
//! took. So whoever uses the link need not know that there are two ways.
//!
//! The host chooses the data transport among those that both sides have, the strongest first, and
//! goes on over the next simpler one when it fails, at the start or later: payloads that the peer
//! does not have yet are written again ([`payloads`]). The last resort is the control connection.
//!
//! No thread, no clock: whoever drives the link passes the time in. Start reading at
//! [`RemoteLink`]; [`message`] has what the two ends say to each other.

pub mod choose;
#[cfg(feature = "cli")]
pub mod cli;
mod data;
pub mod endpoint;
pub mod link;
pub mod message;
pub mod moves;
pub mod payloads;
mod settings;

pub use endpoint::Endpoint;
pub use link::{RemoteLink, Role};
pub use settings::LinkSettings;
