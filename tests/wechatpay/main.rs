//! WeChat Pay: published samples, the defects of other implementations, hostile input.

mod defects;
mod hostile;
mod samples;
mod support;
