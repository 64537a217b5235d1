// What every file of fuzz_targets is: the body of its name, with its memory counted.

#[path = "meter.rs"]
mod meter;

libfuzzer_sys::fuzz_target!(|input: &[u8]| meter::run(env!("CARGO_BIN_NAME"), input));
