//! How sure a recognizer is, in words: one scale for all, so that claims of different plugins
//! compare.
//!
//! A claim wins over another one by its level, so a level is a statement about what else the same
//! evidence could mean.

/// The program said so, or the capture recorded it: stages of training.
pub const RECORDED: f32 = 0.99;
/// Nothing else looks like this: several signs of one domain that agree.
pub const UNMISTAKABLE: f32 = 0.95;
/// A signature of the domain, seen whole.
pub const STRONG: f32 = 0.9;
/// A signature of the domain, once, or written unusually.
pub const GOOD: f32 = 0.85;
/// Good structural evidence that a few other models share.
pub const LIKELY: f32 = 0.8;
/// Structure that fits, where something usual is missing.
pub const FAIR: f32 = 0.7;
/// As likely something near it.
pub const PLAUSIBLE: f32 = 0.6;
/// Other domains do this too.
pub const POSSIBLE: f32 = 0.5;
/// A hint that anything better overrules.
pub const WEAK: f32 = 0.4;
/// The least that is worth a claim.
pub const CLAIM_MIN: f32 = 0.3;
/// What is left when nobody recognizes anything.
pub const FALLBACK: f32 = 0.12;
/// What each further sign of the same domain adds.
pub const AGREES: f32 = 0.02;

/// A claim times this is what is left of it where something else is as likely: another domain's
/// sign.
pub const BESIDE_A_SIGN: f32 = 0.5;
/// A claim times this is what is left of it where another domain's signature is there.
pub const BESIDE_A_SIGNATURE: f32 = 0.3;
