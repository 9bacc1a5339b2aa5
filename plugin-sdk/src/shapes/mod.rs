//! Shapes that computations of many models share: attention, modalities, passes over tokens.
//!
//! They are found by operators, sizes and wiring, never by names. Recognizers of several domains
//! build on them.

pub mod attention;
pub mod convolution;
pub mod flow;
pub mod modality;
pub mod passes;
#[cfg(all(test, feature = "harness"))]
mod tests;
pub mod view;

pub use attention::{Attention, attentions};
pub use convolution::Convolution;
pub use flow::Flow;
pub use modality::{Modalities, Modality};
pub use passes::{Pass, Passes};
pub use view::View;
