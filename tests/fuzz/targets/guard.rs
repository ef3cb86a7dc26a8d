#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    checks::guard::check(data);
});
