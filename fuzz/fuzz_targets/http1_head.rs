//! Fuzzes request heads: no panic, and the same judgement whether the bytes come at once or one at a time.
#![no_main]

use lurcher::http1::{Field, Head, Limits, Parsed, Progress, Refusal, parse_head};

fn judge(progress: &mut Progress, buf: &[u8]) -> Option<Result<(usize, usize), Refusal>> {
    let sizes = |head: Head<'_, '_, Field<'_>>| (head.len, head.fields.len());
    match parse_head(progress, buf, &Limits::default(), sizes) {
        Parsed::Complete(head) => Some(Ok(head)),
        Parsed::Partial => None,
        Parsed::Refused(refusal) => Some(Err(refusal)),
    }
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut progress = Progress::default();
    let pieces = (0..=input.len()).find_map(|end| judge(&mut progress, &input[..end]));
    assert_eq!(pieces, judge(&mut Progress::default(), input));
});
