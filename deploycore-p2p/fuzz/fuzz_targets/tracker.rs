#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| deploycore_p2p_fuzz::tracker::run(input));
