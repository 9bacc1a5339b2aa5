//! Drawings of a graph (later).
