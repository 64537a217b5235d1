//! Benchmarks of Model Cache; see `benches/`. Whole pulls beside other programs are `make figures`.
#![forbid(unsafe_code)]
