//! Replays the fuzz targets' corpora, and seeded mutations of them, with the stable toolchain: what `scripts/fuzz`
//! once found stays fixed, whoever runs the tests.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use checks::Check;

/// Mutations of each target's corpus, a part for each of its inputs.
const MUTATIONS: usize = 20_000;

/// Mutants grow to this length at most.
const MUTANT_BYTES_MAX: usize = 8 << 10;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
}

/// Names and contents of a target's inputs, by name.
fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut inputs: Vec<_> = fs::read_dir(corpus().join(target))
        .expect("a corpus for each target")
        .map(|entry| {
            let entry = entry.expect("readable");
            let name = entry.file_name().into_string().expect("a plain name");
            (name, fs::read(entry.path()).expect("readable"))
        })
        .collect();
    inputs.sort();
    inputs
}

/// Runs one check; when it fails, says on what.
fn run(check: Check, origin: &str, input: &[u8]) -> String {
    catch_unwind(AssertUnwindSafe(|| check(input))).unwrap_or_else(|panic| {
        eprintln!("{origin} broke an invariant with: {}", input.escape_ascii());
        resume_unwind(panic)
    })
}

/// Replays a target: every input as it is, then mutants. `outcomes` are those that the inputs must reach.
fn replay(target: &str, outcomes: &[&str]) {
    let (_, check) = checks::TARGETS
        .into_iter()
        .find(|(name, _)| *name == target)
        .expect("a target");
    let inputs = inputs(target);
    let reached: BTreeSet<String> = inputs
        .iter()
        .map(|(name, input)| run(check, name, input))
        .collect();
    for outcome in outcomes {
        assert!(
            reached.contains(*outcome),
            "no input comes to `{outcome}`, only to {reached:?}"
        );
    }
    let mut random = fastrand::Rng::with_seed(0x0b1a_c401e);
    for turn in 0..MUTATIONS {
        let (name, input) = &inputs[turn % inputs.len()];
        let (_, other) = &inputs[random.usize(..inputs.len())];
        let mutant = mutate(input, other, &mut random);
        run(check, &format!("mutant {turn} of {name}"), &mutant);
    }
}

/// `input` with one to four changes.
fn mutate(input: &[u8], other: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    const TELLING: &[u8] = b"\0\x01\x7f\x80\xc3\xce\xfe\xff\"\\*#.,:{}[] \r\n%0-";
    let mut mutant = input.to_vec();
    for _ in 0..random.usize(1..=4) {
        let range = |bytes: &[u8], random: &mut fastrand::Rng| {
            let from = random.usize(..=bytes.len());
            from..bytes.len().min(from + random.usize(..=16))
        };
        let here = range(&mutant, random);
        match random.u8(..6) {
            0 if !here.is_empty() => mutant[here.start] ^= 1 << random.u8(..8),
            1 if !here.is_empty() => mutant[here.start] = TELLING[random.usize(..TELLING.len())],
            2 => mutant.insert(here.start, TELLING[random.usize(..TELLING.len())]),
            3 => drop(mutant.drain(here)),
            4 => {
                let copy = mutant[range(&mutant, random)].to_vec();
                drop(mutant.splice(here, copy));
            }
            _ => {
                let copy = other[range(other, random)].to_vec();
                drop(mutant.splice(here, copy));
            }
        }
    }
    mutant.truncate(MUTANT_BYTES_MAX);
    mutant
}

#[test]
fn every_target_has_a_corpus_and_a_program_and_the_reverse() {
    let targets: BTreeSet<String> = checks::TARGETS.map(|(name, _)| name.to_owned()).into();
    let folders: BTreeSet<String> = fs::read_dir(corpus())
        .expect("the corpora")
        .map(|entry| {
            entry
                .expect("readable")
                .file_name()
                .into_string()
                .expect("a plain name")
        })
        .collect();
    assert_eq!(folders, targets);
    let manifest = fs::read_to_string(corpus().with_file_name("Cargo.toml")).expect("a manifest");
    let programs: BTreeSet<String> = manifest
        .lines()
        .filter_map(|line| {
            line.strip_prefix("path = \"targets/")?
                .strip_suffix(".rs\"")
        })
        .map(str::to_owned)
        .collect();
    assert_eq!(programs, targets);
}

#[test]
fn any_client_binding_is_refused_or_gets_the_events_of_its_own_keys_only() {
    replay(
        "binding",
        &[
            "call",
            "conference",
            "fax",
            "object",
            "doc_created",
            "presence",
            "dialog",
            "registration",
            "queue",
            "for every account",
            "no subscriptions",
            "invalid format",
            "not supported",
            "required",
        ],
    );
}

#[test]
fn any_client_bytes_give_the_same_messages_however_cut_and_as_another_parser() {
    replay(
        "codec",
        &[
            "nothing",
            "in part",
            "messages",
            "deflated messages",
            "close",
            "Unmasked",
            "ReservedBit",
            "ReservedOpcode",
            "MalformedLength",
            "LongControlFrame",
            "FragmentedControlFrame",
            "NothingToContinue",
            "MessageUnderWay",
            "MalformedClose",
            "InvalidCloseCode",
            "InvalidUtf8",
            "MessageTooBig",
        ],
    );
}

#[test]
fn any_text_is_the_command_that_its_json_says_or_an_error_without_its_token() {
    replay(
        "command",
        &[
            "subscribe",
            "unsubscribe",
            "ping",
            "MissingData",
            "MissingKeys",
            "InvalidJson",
            "MissingAction",
            "UnknownAction",
            "Invalid(Action)",
            "Invalid(AccountId)",
            "Invalid(Binding)",
            "Invalid(Bindings)",
            "Invalid(RequestId)",
            "Invalid(Name)",
            "MetadataTooLarge",
            "Invalid(Metadata)",
        ],
    );
}

#[test]
fn any_payload_inflates_within_its_bound_and_as_another_inflater_says() {
    replay(
        "deflate",
        &[
            "nothing",
            "inflated",
            "message is too big",
            "message does not inflate",
            "invalid UTF-8",
        ],
    );
}

#[test]
fn any_body_is_dropped_or_comes_out_of_both_styles_as_the_protocol_says() {
    replay(
        "event",
        &[
            "event",
            "document event",
            "event of no account",
            "no tree",
            "NotUtf8",
            "NotJsonObject",
            "BrokenGzip",
        ],
    );
}

#[test]
fn any_row_of_an_operator_is_refused_with_its_place_or_keeps_accounts_apart() {
    replay(
        "family",
        &[
            "nothing",
            "not text",
            "no row",
            "refused",
            "a binding",
            "a binding for every account",
            "no binding",
        ],
    );
}

#[test]
fn any_forwarding_headers_tell_the_peer_that_the_last_trusted_proxy_saw() {
    replay(
        "forwarded",
        &[
            "nobody",
            "somebody",
            "Forwarded is malformed",
            "Forwarded and X-Forwarded-For disagree",
        ],
    );
}

#[test]
fn any_broker_bytes_are_refused_or_safe_for_the_amqp_client() {
    replay(
        "guard",
        &[
            "unchanged",
            "defused",
            "swallowed",
            "in part",
            "defused, with an offset",
        ],
    );
}

#[test]
fn any_request_head_is_judged_alike_however_cut_and_as_another_server() {
    replay(
        "handshake",
        &[
            "incomplete",
            "upgrade",
            "upgrade with token",
            "upgrade with style",
            "probe Get",
            "probe Head",
            "400",
            "403",
            "404",
            "405",
            "426",
            "431",
        ],
    );
}

#[test]
fn any_token_is_refused_but_the_signed_one_and_any_key_or_account_file_is_read_whole_or_not() {
    replay(
        "jwt",
        &[
            "taken",
            "too_long",
            "malformed",
            "algorithm",
            "signature",
            "keys",
            "tree",
            "account refused",
        ],
    );
}

#[test]
fn any_proxy_header_tells_the_peer_and_only_from_a_trusted_proxy() {
    replay(
        "proxy",
        &[
            "incomplete",
            "absent",
            "malformed",
            "no source",
            "source",
            "session of its own, absent",
            "session of its own, no source",
            "session of another, absent",
            "session of another, source",
        ],
    );
}

#[test]
fn any_record_of_a_tls_connection_opens_to_what_was_sealed_or_ends_it() {
    replay(
        "records",
        &[
            "nothing",
            "in part",
            "data",
            "idle",
            "end",
            "not a record",
            "not_tls",
            "too_long",
            "no_content",
            "forged",
            "out_of_place",
            "malformed",
            "idling",
            "alerted",
        ],
    );
}
