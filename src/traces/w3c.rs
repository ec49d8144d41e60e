//! The headers by which a trace goes from one program to the next: W3C Trace Context, level 2
//! (<https://www.w3.org/TR/trace-context-2/>), in messages of Kafka as in HTTP.
//!
//! Whoever writes a message writes these. What is malformed counts as absent, and never as an error.

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// `00-<trace id, 32 hex digits>-<parent's span id, 16>-<flags, 2>`.
pub const TRACEPARENT: &str = "traceparent";
/// What other vendors' systems pass on, as a list of `key=value`.
pub const TRACESTATE: &str = "tracestate";

/// A `traceparent` of version 0; those of later versions begin the same.
const LENGTH: usize = 55;
/// Of later versions, more than any would hold.
const MAX_LENGTH: usize = 256;
/// "SHOULD propagate at least 512 characters"; more is dropped.
const MAX_STATE: usize = 512;
/// Flags that level 2 defines: sampled, and that the trace id is random. (`TraceContextPropagator` of opentelemetry_sdk 0.31
/// knows the first alone, and takes the second for an error.)
const KNOWN_FLAGS: u8 = 0b11;

/// The span that sent what has these headers; `None` without a valid `traceparent`.
pub fn parent<'a>(header: impl Fn(&str) -> Option<&'a [u8]>) -> Option<SpanContext> {
    let parent = std::str::from_utf8(header(TRACEPARENT)?).ok()?.trim_matches([' ', '\t']);
    let (head, rest) = parent.split_at_checked(LENGTH)?;
    let mut parts = head.split('-');
    let mut next = |digits: usize| parts.next().filter(|part| part.len() == digits && part.bytes().all(is_hex));
    let (version, trace, span, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
    let is_whole = match version {
        "ff" => false,
        "00" => rest.is_empty(),
        _ => (rest.is_empty() || rest.starts_with('-')) && parent.len() <= MAX_LENGTH,
    };
    if !is_whole {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & KNOWN_FLAGS);
    let state = header(TRACESTATE).and_then(state).unwrap_or(TraceState::NONE);
    let context = SpanContext::new(TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?, flags, true, state);
    context.is_valid().then_some(context)
}

/// All of the list or nothing. (`TraceState`'s own parser takes a space after a comma, which the format allows, for an error.)
fn state(list: &[u8]) -> Option<TraceState> {
    let is_good = list.len() <= MAX_STATE && list.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t'));
    let list = std::str::from_utf8(list).ok().filter(|_| is_good)?;
    let members = list.split(',').map(str::trim).filter(|member| !member.is_empty());
    let members = members.map(|member| member.split_once('=')).collect::<Option<Vec<_>>>()?;
    TraceState::from_key_value(members).ok()
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// The headers for what a span sends.
pub fn headers(context: &SpanContext) -> impl Iterator<Item = (&'static str, String)> {
    let (trace, span, flags) = (context.trace_id(), context.span_id(), context.trace_flags().to_u8());
    let parent = context.is_valid().then(|| (TRACEPARENT, format!("00-{trace}-{span}-{flags:02x}")));
    let state = Some(context.trace_state().header()).filter(|state| !state.is_empty());
    parent.into_iter().chain(state.map(|state| (TRACESTATE, state)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn read(traceparent: &[u8], tracestate: Option<&[u8]>) -> Option<SpanContext> {
        parent(|name| match name {
            TRACEPARENT => Some(traceparent),
            TRACESTATE => tracestate,
            _ => None,
        })
    }

    fn written(context: &SpanContext) -> Vec<(&'static str, String)> {
        headers(context).collect()
    }

    #[test]
    fn what_is_read_is_what_is_written() {
        let context = read(GOOD.as_bytes(), Some(b"congo=t61rcWkgMzE, rojo=00f067aa0ba902b7,")).expect("is valid");
        assert!(context.is_remote() && context.is_sampled());
        let state = "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7".to_owned();
        assert_eq!(written(&context), [(TRACEPARENT, GOOD.to_owned()), (TRACESTATE, state)]);
    }

    #[test]
    fn flags_of_level_2_and_later_versions_are_understood() {
        let unsampled = GOOD.replace("-01", "-00");
        assert!(!read(unsampled.as_bytes(), None).expect("is valid").is_sampled());
        let random = GOOD.replace("-01", "-03");
        assert_eq!(written(&read(random.as_bytes(), None).expect("is valid")), [(TRACEPARENT, random)]);
        let later = format!("cc-{}-what-comes", &GOOD[3..]).replace("-01-", "-ff-");
        assert_eq!(
            written(&read(later.as_bytes(), None).expect("is valid")),
            [(TRACEPARENT, GOOD.replace("-01", "-03"))]
        );
    }

    #[test]
    fn what_is_malformed_is_no_parent() {
        let zero_trace = GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32));
        let zero_span = GOOD.replace("b7ad6b7169203331", &"0".repeat(16));
        let giant = format!("cc-{}-{}", &GOOD[3..], "x".repeat(1_000_000));
        let cases = [
            String::new(),
            "-".repeat(LENGTH),
            "字".repeat(30),
            zero_trace,
            zero_span,
            giant,
            GOOD.to_uppercase(),
            GOOD.replace("00-", "ff-"),
            GOOD.replace("0af7", "+af7"),
            GOOD.replace("00-0", "000-"),
            GOOD.replace('-', "_"),
            GOOD[..LENGTH - 1].to_owned(),
            format!("{GOOD}-more"),
            format!("cc-{}x", &GOOD[3..]),
        ];
        for case in cases {
            assert_eq!(read(case.as_bytes(), None), None, "{case:.80}");
        }
        assert_eq!(read(b"\xff\xfe", None), None);
    }

    #[test]
    fn a_bad_tracestate_is_dropped_and_the_parent_stays() {
        // Each of its members is good.
        let giant = (0..MAX_STATE / 4).map(|index| format!("k{index}=v,")).collect::<String>();
        for state in [giant.as_bytes(), b"\xff=1", b"no list", b"A\x00=1", b"a=\n", b""] {
            let context = read(GOOD.as_bytes(), Some(state)).expect("the parent is valid");
            assert_eq!(written(&context), [(TRACEPARENT, GOOD.to_owned())]);
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_taken_is_written_so_that_it_is_taken_again(
            (at, byte) in (0..LENGTH, proptest::num::u8::ANY),
            state in "[a-z]{1,2}=[ -~]{0,8}(, ?[a-z]=[ -~\\pL]{0,8}){0,3}",
        ) {
            let mut header = GOOD.as_bytes().to_vec();
            header[at] = byte;
            if let Some(context) = read(&header, Some(state.as_bytes())) {
                let written = written(&context);
                let again = |wanted: &str| {
                    written.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.as_bytes())
                };
                proptest::prop_assert_eq!(parent(again), Some(context));
            }
        }
    }
}
