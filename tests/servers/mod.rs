//! Servers for tests: an S3 store, static files over http and a proxy that makes faults, each in this process on a free
//! port of 127.0.0.1; and servers of other makers, started when they are installed.

mod azure;
pub mod client;
pub mod external;
pub mod files;
pub mod plan;
pub mod proxy;
pub mod s3;
pub mod serving;
mod wire;
