//! The domain: models, versions, tensors and traffic policies, and every decision about them.
//!
//! Pure: no I/O, no async runtime, no wire format, no clock. Time and random draws are arguments.

pub mod tensor;

pub mod name;

pub mod model;

pub mod artifact;

pub mod infer;

pub mod batch;

pub mod compare;

pub mod histogram;

pub mod graph;

pub mod version;

pub mod deployment;

pub mod budget;

pub mod room;

pub mod routing;

pub mod event;

pub mod error;

pub mod ports;
