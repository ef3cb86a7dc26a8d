//! Memory that the allocator gives back, read from the resident size of a process of its own.

use std::fs;

use support::own_process::in_own_process;

#[test]
fn trimming_gives_the_memory_of_a_burst_back() {
    in_own_process(
        "heap::trimming_gives_the_memory_of_a_burst_back",
        burst_and_trim,
    );
}

fn burst_and_trim() {
    const BURST_KIB: u64 = 128 << 10;
    // Something small stays alive in every stretch of the heap, as sessions do between the outboxes of a burst.
    let (mut sessions, mut outboxes) = (Vec::new(), Vec::new());
    for number in 0..BURST_KIB / 16 {
        outboxes.push(vec![1_u8; 16 << 10]);
        sessions.push(Box::new(number));
    }
    drop(outboxes);
    let burst = resident_kibibytes();
    assert!(
        burst > BURST_KIB,
        "without trimming it stays resident: {burst} KiB"
    );
    blackhole::sys::trim_heap();
    let trimmed = resident_kibibytes();
    assert!(
        trimmed < BURST_KIB / 2,
        "{burst} KiB resident before, {trimmed} KiB after"
    );
    assert_eq!(
        sessions.iter().map(|number| **number).max(),
        Some(BURST_KIB / 16 - 1)
    );
}

fn resident_kibibytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("its resident size");
    line.split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .expect("in kibibytes")
}
