//! The verbs, one file each where they have something to say.

pub mod annotate;
pub mod compare;
pub mod compute;
pub mod doctor;
pub mod inspect;
pub mod model;
pub mod plan;
pub mod slices;
