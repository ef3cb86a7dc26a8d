use proptest::prelude::*;

use super::*;
use crate::event::EventId;

const START_MS: u64 = 1_700_000_000_000;

fn event(number: u64) -> Arc<Event> {
    let body = format!("{{\"n\":{number}}}").into_bytes();
    let event = Event::decode("callevt".into(), "call.x.y".into(), body, None);
    Arc::new(event.expect("a valid body"))
}

fn now(millis: u64) -> Now {
    Now {
        clock: Duration::from_millis(millis),
        unix_ms: START_MS + millis,
    }
}

const OPTIONS: HistoryOptions = HistoryOptions {
    bytes_max: 16 << 20,
    keep: Duration::from_secs(60),
    overlap: Duration::from_secs(2),
};

fn history(mark: u64, at: u64) -> History {
    History::new(OPTIONS, Mark::from_random(mark), now(at))
}

fn seq(located: Result<Place, Why>) -> Result<u64, Why> {
    located.map(|place| place.seq.0)
}

#[test]
fn without_bytes_there_is_nothing() {
    let options = HistoryOptions {
        bytes_max: 0,
        ..OPTIONS
    };
    let mut history = History::new(options, Mark::from_random(1), now(0));
    assert!(!history.is_on());
    assert_eq!(history.take_in(&event(1), now(1)), None);
    assert_eq!((history.here(now(1)), history.draw(now(1))), (None, None));
    assert_eq!(
        (history.len(), history.bytes(), history.next_due()),
        (0, 0, None)
    );
    let cursor = Cursor {
        id: None,
        time: START_MS,
        mark: Mark::from_random(1),
    };
    assert_eq!(history.locate(&cursor, now(1)), Err(Why::Unknown));
}

#[test]
fn a_cursor_of_this_process_is_exact() {
    let mut history = history(1, 1_000);
    let first = history.here(now(1_000)).expect("on");
    let one = history.take_in(&event(1), now(1_000)).expect("on");
    let between = history.here(now(1_000)).expect("on");
    let two = history.take_in(&event(2), now(1_000)).expect("on");
    let three = history.take_in(&event(1), now(1_500)).expect("on");
    for (cursor, expected) in [(first, 0), (one, 1), (between, 1), (two, 2), (three, 3)] {
        assert_eq!(
            seq(history.locate(&cursor, now(2_000))),
            Ok(expected),
            "{cursor}"
        );
    }
    assert_eq!(one.id, three.id, "equal publishes have one id");
    let never = Cursor { id: two.id, ..one };
    assert_eq!(history.locate(&never, now(2_000)), Err(Why::Unknown));
    let future = Cursor {
        time: three.time + 1,
        ..three
    };
    assert_eq!(history.locate(&future, now(2_000)), Err(Why::Unknown));
}

#[test]
fn a_cursor_is_expired_with_the_time_and_with_the_bytes() {
    let mut small = History::new(
        HistoryOptions {
            bytes_max: 3 * (event(1).bytes() + 200),
            ..OPTIONS
        },
        Mark::from_random(1),
        now(0),
    );
    let cursors: Vec<Cursor> = (0..10)
        .filter_map(|number| small.take_in(&event(number), now(10 + number)))
        .collect();
    let kept = small.len() as u64;
    assert!((1..5).contains(&kept), "{kept}");
    assert_eq!(small.dropped_early(), 10 - kept);
    for (number, cursor) in (1..).zip(&cursors) {
        let expected = if number <= 10 - kept {
            Err(Why::Expired)
        } else {
            Ok(number)
        };
        assert_eq!(seq(small.locate(cursor, now(30))), expected, "{number}");
    }

    let mut history = history(1, 0);
    let cursor = history.take_in(&event(1), now(10)).expect("on");
    assert_eq!(seq(history.locate(&cursor, now(60_010))), Ok(1));
    assert_eq!(seq(history.locate(&cursor, now(60_011))), Err(Why::Expired));
    assert_eq!(history.next_due(), Some(Duration::from_millis(60_011)));
    history.evict(now(60_011));
    assert_eq!((history.len(), history.bytes()), (0, 0));
    assert_eq!((history.first(), history.next()), (Seq(1), Seq(1)));
    assert_eq!(history.dropped_early(), 0);
}

#[test]
fn an_outage_without_an_event_between_is_told_too() {
    let mut history = history(1, 0);
    let before = history.take_in(&event(1), now(10)).expect("on");
    let position = history.here(now(10)).expect("on");
    history.outage(0, now(10));
    let after = history.here(now(10)).expect("on");
    for (cursor, expected) in [
        (before, Err(Why::Outage)),
        (position, Err(Why::Outage)),
        (after, Ok(1)),
    ] {
        assert_eq!(seq(history.locate(&cursor, now(20))), expected, "{cursor}");
    }

    // The source tells of the next one before the loop has taken two events that came before it.
    history.outage(2, now(30));
    let cursors: Vec<Cursor> = (0..4)
        .filter_map(|number| history.take_in(&event(10 + number), now(31 + number)))
        .collect();
    for (number, cursor) in cursors.iter().enumerate() {
        let is_good = history.locate(cursor, now(40)).is_ok();
        assert_eq!(is_good, number >= 2, "{number}");
    }

    // Of the many that the source may hold there is none.
    history.outage(2_000, now(50));
    history.nothing_waits(now(2_049));
    let early = history.take_in(&event(20), now(2_049)).expect("on");
    history.nothing_waits(now(2_050));
    let late = history.take_in(&event(21), now(2_060)).expect("on");
    assert_eq!(history.locate(&early, now(2_070)), Err(Why::Outage));
    assert_eq!(seq(history.locate(&late, now(2_070))), Ok(7));
}

#[test]
fn a_boundary_lies_behind_all_cursors_before_it_and_before_all_behind_it() {
    let mut history = history(1, 0);
    let before = history.here(now(10)).expect("on");
    let boundary = history.draw(now(10)).expect("on");
    assert_eq!(
        history.draw(now(10)),
        Some(boundary),
        "no cursor came between"
    );
    let after = history.here(now(10)).expect("on");
    let place = |cursor| history.locate(cursor, now(20)).expect("good");
    assert!(!place(&before).is_behind(boundary));
    assert!(place(&after).is_behind(boundary));
}

#[test]
fn times_follow_the_wall_clock_forward_and_never_back() {
    let mut history = history(1, 0);
    let mut time_at = |clock: u64, wall: u64| {
        let now = Now {
            clock: Duration::from_millis(clock),
            unix_ms: wall,
        };
        history.take_in(&event(clock), now).expect("on").time - START_MS
    };
    assert_eq!(time_at(100, START_MS + 100), 100);
    assert_eq!(
        time_at(200, START_MS + 3_600_200),
        3_600_200,
        "a step forward"
    );
    assert_eq!(time_at(300, START_MS + 300), 3_600_300, "back again");
    assert_eq!(time_at(400, START_MS + 3_700_000), 3_700_000, "caught up");
}

#[test]
fn times_never_run_away_from_the_clock() {
    let mut history = history(1, 0);
    let cursors: Vec<Cursor> = (0..5_000)
        .filter_map(|number| history.take_in(&event(number), now(10)))
        .collect();
    assert!(cursors.is_sorted_by_key(|cursor| cursor.time));
    assert_eq!(cursors[4_999].time, START_MS + 10 + 1_000);
    for number in [0_usize, 500, 1_500, 4_998, 4_999] {
        let located = seq(history.locate(&cursors[number], now(20)));
        assert_eq!(located, Ok(number as u64 + 1), "{number}");
    }
    let position = history.here(now(10)).expect("on");
    let next = history.take_in(&event(5_000), now(10)).expect("on");
    assert!(
        position.time < next.time,
        "or the next event would be behind it"
    );
    assert!(matches!(
        seq(history.locate(&position, now(20))),
        Ok(..5_000)
    ));
}

#[test]
fn while_sessions_lack_the_newest_event_the_position_is_before_it() {
    let mut history = history(1, 0);
    history.take_in(&event(1), now(10));
    history.take_in(&event(2), now(10));
    history.set_partial(true);
    let position = history.here(now(15)).expect("on");
    assert_eq!(seq(history.locate(&position, now(20))), Ok(1));
    history.set_partial(false);
    let position = history.here(now(15)).expect("on");
    assert_eq!(seq(history.locate(&position, now(20))), Ok(2));
}

#[test]
fn a_position_is_before_an_event_too_large_to_be_kept_that_some_lack() {
    let options = HistoryOptions {
        bytes_max: 1,
        ..OPTIONS
    };
    let mut history = History::new(options, Mark::from_random(1), now(0));
    history.take_in(&event(1), now(10));
    history.set_partial(true);
    assert!(history.is_empty());
    history.here(now(500));
    history.draw(now(1_000));
    let position = history.here(now(1_000)).expect("on");
    assert_eq!(history.locate(&position, now(1_000)), Err(Why::Expired));
}

#[test]
fn a_cursor_of_another_process_goes_back_by_the_overlap() {
    let late_start = Now {
        clock: Duration::from_millis(400),
        unix_ms: START_MS,
    };
    let mut one = History::new(OPTIONS, Mark::from_random(1), late_start);
    let mut other = history(2, 0);
    let mut cursors = Vec::new();
    for number in 0..100 {
        let at = 10_000 + 100 * number;
        // The clock of the one is 400 ms late, and it takes each event in 300 ms later.
        let late = Now {
            clock: Duration::from_millis(at + 300),
            unix_ms: START_MS + at - 100,
        };
        cursors.push(one.take_in(&event(number), late).expect("on"));
        other.take_in(&event(number), now(at));
    }
    let last = now(20_000);
    assert_eq!(
        seq(other.locate(&cursors[50], last)),
        Ok(29),
        "by its time, which is earlier"
    );
    let fast = Cursor {
        time: cursors[50].time + 900,
        ..cursors[50]
    };
    assert_eq!(
        seq(other.locate(&fast, last)),
        Ok(30),
        "two seconds before the event that it names"
    );
    let unknown_id = Cursor {
        id: event(1_000).id.into(),
        ..cursors[50]
    };
    assert_eq!(seq(other.locate(&unknown_id, last)), Ok(29), "by its time");
    let position = Cursor {
        id: None,
        ..cursors[50]
    };
    assert_eq!(seq(other.locate(&position, last)), Ok(29));
    let far = Cursor {
        time: cursors[50].time - 4_000,
        ..cursors[50]
    };
    assert!(
        matches!(seq(other.locate(&far, last)), Ok(..20)),
        "an equal publish of another time is not meant"
    );
    let future = Cursor {
        time: START_MS + 22_001,
        ..cursors[50]
    };
    assert_eq!(other.locate(&future, last), Err(Why::Unknown));
    let old = Cursor {
        time: START_MS + 1_000,
        ..position
    };
    assert_eq!(
        other.locate(&old, last),
        Err(Why::Expired),
        "before the process began"
    );
    other.outage(0, now(19_000));
    assert_eq!(other.locate(&cursors[50], last), Err(Why::Outage));
}

#[test]
fn a_cursor_has_one_spelling() {
    let mark = Mark::from_random(123_456_789);
    let id = EventId::of("callevt", "key", b"{}");
    for cursor in [
        Cursor {
            id: None,
            time: 0,
            mark,
        },
        Cursor {
            id: Some(id),
            time: START_MS,
            mark,
        },
        Cursor {
            id: Some(id),
            time: u64::MAX,
            mark,
        },
    ] {
        let text = cursor.to_string();
        assert!(text.len() <= cursor::CURSOR_BYTES_MAX);
        assert_eq!(Cursor::parse(&text), Some(cursor), "{text}");
    }
    let good = Cursor {
        id: Some(id),
        time: START_MS,
        mark,
    }
    .to_string();
    for bad in [
        "".to_owned(),
        "true".into(),
        "0".into(),
        "0.0".into(),
        "0.0.00000".into(),
        "0.0.0000000".into(),
        "00.0.000000".into(),
        "0.00.000000".into(),
        "0..000000".into(),
        "0.+1.000000".into(),
        "0.-1.000000".into(),
        "0.A.000000".into(),
        "0.1.00000A".into(),
        "0.1.000000.".into(),
        "0.3w5e11264sgsg.000000".into(),
        "0.zzzzzzzzzzzzzz.000000".into(),
        "0.1.é0000".into(),
        format!(" {good}"),
        format!("{good} "),
        good.to_uppercase(),
        good.replacen('.', "", 1),
        "0".repeat(1_000_000),
    ] {
        assert_eq!(Cursor::parse(&bad), None, "{bad:.60}");
    }
}

/// What a process does next, and how many milliseconds later.
#[derive(Clone, Debug)]
enum Step {
    TakeIn { number: u64, copies: u64 },
    Here,
    Outage,
    Partial,
    WallSteps(i64),
    Sleep(u64),
}

fn step() -> impl Strategy<Value = (u64, Step)> {
    let step = prop_oneof![
        8 => (0..6_u64, 1..3_u64).prop_map(|(number, copies)| Step::TakeIn { number, copies }),
        1 => (0..6_u64, 500..1_500_u64).prop_map(|(number, copies)| Step::TakeIn { number, copies }),
        4 => Just(Step::Here),
        1 => Just(Step::Outage),
        1 => Just(Step::Partial),
        1 => (-5_000..5_000_i64).prop_map(Step::WallSteps),
        2 => (0..30_000_u64).prop_map(Step::Sleep),
    ];
    (0..3_u64, step)
}

/// A cursor that was given, and what the model knows of it.
struct Given {
    cursor: Cursor,
    /// Events taken in before it, all of which whoever has it was sent.
    behind: u64,
    /// Outages before it.
    outages: usize,
    /// It may be a position a millisecond early, and so before an outage that it is not before.
    is_early: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Every cursor that was ever given is either refused, or located at its place or, doubles before losses, before it.
    #[test]
    fn no_cursor_of_this_process_loses_an_event(
        steps in proptest::collection::vec(step(), 1..80),
        kilobytes in 20..400_usize,
    ) {
        let options = HistoryOptions { bytes_max: kilobytes << 10, ..OPTIONS };
        let mut history = History::new(options, Mark::from_random(7), now(0));
        let (mut clock, mut stepped, mut taken) = (1, 0_i64, 0);
        // Outages so far, and before the newest event.
        let (mut outages, mut newest) = (0, 0);
        let mut given: Vec<Given> = Vec::new();
        for (pause, step) in steps {
            clock += pause;
            let at = |clock: u64, stepped: i64| Now {
                clock: Duration::from_millis(clock),
                unix_ms: (START_MS + clock).saturating_add_signed(stepped),
            };
            match step {
                Step::TakeIn { number, copies } => {
                    for copy in 0..copies {
                        let cursor = history.take_in(&event((number + copy) % 6), at(clock, stepped));
                        taken += 1;
                        newest = outages;
                        // The later ones of many are at the bound of the times.
                        if copy < 2 || copy + 2 > copies {
                            given.push(Given { cursor: cursor.expect("on"), behind: taken, outages, is_early: false });
                        }
                    }
                }
                Step::Here => {
                    let cursor = history.here(at(clock, stepped)).expect("on");
                    let is_early = cursor.time < history.on.as_ref().expect("on").last;
                    given.push(Given { cursor, behind: taken, outages, is_early });
                }
                Step::Outage => {
                    history.outage(0, at(clock, stepped));
                    outages += 1;
                }
                Step::Partial if taken > 0 => {
                    history.set_partial(true);
                    let cursor = history.here(at(clock, stepped)).expect("on");
                    given.push(Given { cursor, behind: taken - 1, outages: newest, is_early: true });
                    history.set_partial(false);
                }
                Step::Partial => {}
                Step::WallSteps(by) => stepped += by,
                Step::Sleep(by) => clock += by,
            }
            history.evict(at(clock, stepped));
            prop_assert_eq!(history.next().0, taken);
            let on = history.on.as_ref().expect("on");
            let horizon = on.horizon.time;
            for one in &given {
                match history.locate(&one.cursor, at(clock, stepped)) {
                    Ok(place) => {
                        prop_assert!(place.seq.0 <= one.behind, "{} lost an event", one.cursor);
                        prop_assert!(place.seq >= history.first() , "{} is not all here", one.cursor);
                        prop_assert_eq!(one.outages, outages, "{} is from before an outage", one.cursor);
                    }
                    Err(why) => {
                        prop_assert!(
                            one.outages < outages || one.is_early || one.cursor.time <= horizon || on.time(at(clock, stepped)) > one.cursor.time + 60_000,
                            "{} was refused: {:?}", one.cursor, why
                        );
                    }
                }
            }
        }
    }

    /// What the one process took in behind a cursor, the other has behind the place of that cursor.
    #[test]
    fn no_cursor_of_another_process_loses_an_event(
        pauses in proptest::collection::vec((0..400_u64, 0..450_u64, 0..450_u64), 30..120),
        skew in -400..400_i64,
        asked in 0..1_000_usize,
    ) {
        let skewed = |at| Now { unix_ms: now(at).unix_ms.saturating_add_signed(skew), ..now(at) };
        let mut one = History::new(OPTIONS, Mark::from_random(1), skewed(0));
        let mut other = history(2, 0);
        let mut clock = 0;
        let mut arrivals = Vec::new();
        for (number, (pause, to_one, to_other)) in pauses.iter().enumerate() {
            clock += pause;
            arrivals.push((clock + to_one, true, number));
            arrivals.push((clock + to_other, false, number));
        }
        arrivals.sort_unstable();
        let (mut of_one, mut of_other) = (Vec::new(), Vec::new());
        for (at, is_one, number) in arrivals {
            // Some have equal ids.
            let published = event(number as u64 / 2);
            if is_one {
                of_one.push((number, one.take_in(&published, skewed(at)).expect("on")));
            } else {
                other.take_in(&published, now(at));
                of_other.push(number);
            }
        }
        let asked = asked % of_one.len();
        let (_, cursor) = of_one[asked];
        let position = Cursor { id: None, ..cursor };
        for cursor in [cursor, position] {
            match other.locate(&cursor, now(clock + 1_000)) {
                Ok(place) => {
                    let replayed = &of_other[place.seq.0 as usize..];
                    for (number, _) in &of_one[asked + 1..] {
                        prop_assert!(replayed.contains(number), "{number} is lost");
                    }
                }
                Err(why) => prop_assert_eq!(why, Why::Expired, "only the start is before it"),
            }
        }
    }
}

/// Not a test: what id and history cost an event of 1 KB. To be run with optimisation:
/// `CARGO_PROFILE_TEST_OPT_LEVEL=3 cargo test --lib what_an_event_costs -- --ignored --nocapture`.
#[test]
#[ignore = "it measures"]
fn what_an_event_costs() {
    let events: Vec<Arc<Event>> = (0..100_000)
        .map(|number| {
            let body = format!("{{\"n\":{number},\"x\":\"{}\"}}", "x".repeat(1_000));
            let event = Event::decode("callevt".into(), "call.x.y".into(), body.into_bytes(), None);
            Arc::new(event.expect("a valid body"))
        })
        .collect();
    let begin = std::time::Instant::now();
    for event in &events {
        let id = EventId::of(&event.exchange, &event.routing_key, event.body.as_bytes());
        std::hint::black_box(id);
    }
    let ids = begin.elapsed();
    let mut history = history(1, 0);
    let begin = std::time::Instant::now();
    for (number, event) in (0_u64..).zip(&events) {
        std::hint::black_box(history.take_in(event, now(number)));
    }
    let ring = begin.elapsed();
    println!(
        "id {:?} history {:?} an event",
        ids / 100_000,
        ring / 100_000
    );
}

/// Two processes that both take in events 0 to 19, one a second; the first is away from second 5 on, and back at second 25.
fn one_that_was_away() -> (History, History) {
    let (mut away, mut there) = (history(1, 0), history(2, 0));
    for number in 0..20 {
        let at = 1_000 * number;
        there.take_in(&event(number), now(at));
        if number < 5 {
            away.take_in(&event(number), now(at));
        }
    }
    away.fall_behind(Duration::from_secs(5));
    (away, there)
}

#[test]
fn a_position_of_a_process_whose_source_is_away_lies_where_the_source_went() {
    let (mut away, there) = one_that_was_away();
    let position = away.here(now(24_000)).expect("on");
    let found = seq(there.locate(&position, now(24_000)));
    assert_eq!(found, Ok(3), "two seconds before the source went");
    assert_eq!(seq(away.locate(&position, now(24_000))), Ok(5));
}

#[test]
fn what_waited_in_a_queue_is_found_where_another_process_took_it_in_long_before() {
    let (mut away, there) = one_that_was_away();
    away.come_back(true);
    away.nothing_waits(now(25_000));
    let backlog: Vec<Cursor> = (5..20)
        .filter_map(|number| away.take_in(&event(number), now(25_100)))
        .collect();
    for (number, cursor) in (5..20).zip(&backlog) {
        let found = seq(there.locate(cursor, now(25_200))).expect("it is there");
        assert!(found <= number + 1, "{found} for the cursor of {number}");
        assert_eq!(seq(away.locate(cursor, now(25_200))), Ok(number + 1));
    }
    // Two seconds of silence, and the clock is told again.
    away.nothing_waits(now(26_000));
    away.nothing_waits(now(28_000));
    let position = away.here(now(28_000)).expect("on");
    assert_eq!(position.time, START_MS + 28_000);
}

#[test]
fn what_came_after_a_moment_is_told_by_when_it_came_and_not_by_times_that_stood_still() {
    let (mut away, _) = one_that_was_away();
    away.come_back(true);
    for number in 5..10 {
        away.take_in(&event(number), now(25_000 + 10 * number));
    }
    let from = |history: &History, at: u64| history.from_time(START_MS + at, now(26_000));
    assert_eq!(from(&away, 25_070), Some(Seq(8)));
    assert_eq!(from(&away, 25_071), Some(Seq(8)));
    assert_eq!(from(&away, 25_069), Some(Seq(7)));
    // A hole that is told meanwhile lies when it was told, too.
    away.outage(0, now(25_500));
    assert_eq!(from(&away, 25_400), None);
    assert_eq!(from(&away, 25_501), Some(Seq(10)));
}

#[test]
fn a_position_says_nothing_of_the_time_in_which_the_broker_may_be_silent() {
    let (mut cut_off, mut there) = (history(1, 0), history(2, 0));
    for number in 0..20 {
        let at = 1_000 * number;
        there.take_in(&event(number), now(at));
        if number < 5 {
            cut_off.take_in(&event(number), now(at));
            cut_off.know_caught_up(Some(Duration::from_millis(at + 500)));
        }
    }
    // Nobody has noticed yet.
    let position = cut_off.here(now(20_000)).expect("on");
    assert_eq!(position.time, START_MS + 4_500);
    assert_eq!(seq(there.locate(&position, now(20_000))), Ok(3));
    assert_eq!(seq(cut_off.locate(&position, now(20_000))), Ok(5));
    let later = cut_off.take_in(&event(5), now(20_100)).expect("on");
    let position = cut_off.here(now(20_100)).expect("on");
    assert_eq!(position.time, later.time, "no event comes twice");
    assert_eq!(seq(cut_off.locate(&position, now(20_100))), Ok(6));
}

#[test]
fn a_process_to_which_events_come_all_the_time_is_not_behind_for_ever() {
    let (mut away, _) = one_that_was_away();
    away.come_back(true);
    // Five waited, one was on its way when that was known; and then two a second, without a pause.
    for number in 5..10 {
        away.take_in(&event(number), now(25_000));
    }
    away.catch_up(1);
    let waited = away.take_in(&event(10), now(25_000)).expect("on");
    assert!(waited.time < START_MS + 5_100, "{waited}");
    for number in 11..200 {
        let at = 25_000 + 500 * number;
        away.nothing_waits(now(at));
        let cursor = away.take_in(&event(number), now(at)).expect("on");
        assert_eq!(cursor.time, START_MS + at);
        assert!(away.locate(&cursor, now(at)).is_ok());
    }
    // Away once more: what was known of the time before does not count.
    away.fall_behind(Duration::from_secs(125));
    away.catch_up(0);
    let position = away.here(now(130_000)).expect("on");
    assert_eq!(position.time, START_MS + 125_000);
    away.come_back(true);
    away.catch_up(0);
    let position = away.here(now(130_000)).expect("on");
    assert_eq!(position.time, START_MS + 130_000);
}

#[test]
fn a_binding_that_came_with_the_source_is_not_covered_in_what_waited() {
    let (mut away, _) = one_that_was_away();
    let boundary = away.draw_coverage(now(24_900)).expect("on");
    away.come_back(true);
    let waited = away.take_in(&event(5), now(25_100)).expect("on");
    let place = away.locate(&waited, now(25_100)).expect("its own");
    assert!(!place.is_behind(boundary));
    for at in [26_000, 28_000] {
        away.nothing_waits(now(at));
    }
    let later = away.here(now(28_000)).expect("on");
    let place = away.locate(&later, now(28_000)).expect("its own");
    assert!(place.is_behind(boundary));
}
