//! The threads that answer the authenticator's questions, so that the loop never waits for a signature or the network.
//!
//! ```text
//! loop -> lane of signatures, bounded -> thread "jwt-verify"                               -> answers, bounded -> loop
//!      -> lane of the network, bounded -> threads "crossbar-N", one exchange at a time each ->    and its waker
//! ```
//!
//! | module | owns |
//! |---|---|
//! | this | the lanes, and the threads' life |
//! | `crossbar` | the HTTP client of the platform's REST API, and what its answers mean |
//! | `resolver` | the addresses of that API's host |
//! | `trouble` | causes of trouble, and how often they are logged |
//! | `counters` | figures for the metrics page |
//!
//! Both ends can be held by a test, which then plays the loop or the threads.
//!
//! Invariants: a question is given back at once or answered once, while the loop is there; a lane that is full keeps
//! nobody waiting but who is in it; a panic is an answer that is no yes, and its thread goes on; every thread ends when
//! the loop's end is dropped, after its exchange; an answer is seen by the loop, or a wake is pending.

mod counters;
mod crossbar;
mod resolver;
mod trouble;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

pub use self::counters::InquiryCounters;
use self::counters::increment;
pub use self::crossbar::{
    Authorities, Crossbar, CrossbarError, CrossbarOptions, CrossbarUrl, CrossbarUrlError,
};
use self::trouble::Subject;
use crate::auth::jwt::{self, Refusal};
use crate::auth::{AccountAnswer, Answer, KeyAnswer, Lane, Question};
use crate::handoff::{LoopGone, LoopWaker};
use crate::limits::{
    ANSWERS_MAX, CROSSBAR_QUESTIONS_MAX, CROSSBAR_THREADS, CROSSBAR_WAIT_MAX, VERIFY_LANE_MAX,
};

/// A question on its way.
struct Asked {
    question: Question,
    since: Instant,
}

/// The loop's end. Dropping it ends the threads.
pub struct Inquiry {
    verify: Sender<Asked>,
    network: Sender<Asked>,
    answers: Receiver<Answer>,
    waker: LoopWaker,
}

impl Inquiry {
    /// Asks. Never waits. O(1).
    ///
    /// # Errors
    /// The question back: as many wait as may, or no thread answers this kind.
    pub fn ask(&self, question: Question) -> Result<(), Question> {
        let lane = match question.lane() {
            Lane::Verify => &self.verify,
            Lane::Platform => &self.network,
        };
        let asked = Asked {
            question,
            since: Instant::now(),
        };
        lane.try_send(asked)
            .map_err(|error| error.into_inner().question)
    }

    /// Whether a lane takes another question. O(1).
    #[must_use]
    pub fn has_room(&self, lane: Lane) -> bool {
        match lane {
            Lane::Verify => !self.verify.is_full(),
            Lane::Platform => !self.network.is_full(),
        }
    }

    /// The next answer, if there is one. The loop is woken for answers that come after a `None`: it takes answers until
    /// there is none, or does not wait before it takes more. O(1).
    #[must_use]
    pub fn try_answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok().or_else(|| {
            // One that comes after the next look finds the flag down, and wakes.
            self.waker.clear();
            self.answers.try_recv().ok()
        })
    }

    /// JWTs that wait to be verified (a gauge).
    #[must_use]
    pub fn verify_waiting(&self) -> usize {
        self.verify.len()
    }

    /// Questions that wait for a thread to ask the platform (a gauge).
    #[must_use]
    pub fn network_waiting(&self) -> usize {
        self.network.len()
    }

    /// Answers that wait for the loop (a gauge).
    #[must_use]
    pub fn answers_waiting(&self) -> usize {
        self.answers.len()
    }
}

/// The way of answers to the loop.
#[derive(Clone)]
struct ToLoop {
    answers: Sender<Answer>,
    waker: LoopWaker,
}

impl ToLoop {
    /// Hands over an answer; waits while as many wait as may.
    fn send(&self, answer: Answer) -> Result<(), LoopGone> {
        self.answers.send(answer).map_err(|_| LoopGone)?;
        self.waker.wake();
        Ok(())
    }
}

/// The threads' end: threads are [started](Answering::start) with it, or a test answers.
pub struct Answering {
    verify: Receiver<Asked>,
    network: Receiver<Asked>,
    to_loop: ToLoop,
    counters: Arc<InquiryCounters>,
}

impl Answering {
    /// The next question, signatures first, without waiting: for a test that plays the threads.
    #[must_use]
    pub fn try_question(&self) -> Option<Question> {
        let next = self.verify.try_recv().or_else(|_| self.network.try_recv());
        next.ok().map(|asked| asked.question)
    }

    /// Answers: for a test that plays the threads. Waits while as many answers wait for the loop as may.
    ///
    /// # Errors
    /// The loop's end was dropped.
    pub fn answer(&self, answer: Answer) -> Result<(), LoopGone> {
        self.to_loop.send(answer)
    }

    /// Starts the threads of what is configured: one that `verifies` JWTs, and those that ask `crossbar`. Questions of a
    /// kind that no thread answers are given back from then on. What it returns need not be joined.
    ///
    /// # Errors
    /// The system refused a thread. Those that were started end with the loop's end.
    pub fn start(
        self,
        verifies: bool,
        crossbar: Option<Crossbar>,
    ) -> io::Result<Vec<JoinHandle<()>>> {
        let Self {
            verify,
            network,
            to_loop,
            counters,
        } = self;
        let mut threads = Vec::new();
        if verifies {
            let (to_loop, counters) = (to_loop.clone(), counters.clone());
            let find = {
                let counters = counters.clone();
                move |asked: &Asked| find_here(&counters, asked)
            };
            let work = move || serve(&verify, &to_loop, &counters, find);
            let name = "jwt-verify".to_owned();
            threads.push(thread::Builder::new().name(name).spawn(work)?);
        }
        if let Some(crossbar) = crossbar {
            let crossbar = Arc::new(crossbar);
            for number in 1..=CROSSBAR_THREADS {
                let (network, to_loop) = (network.clone(), to_loop.clone());
                let (counters, crossbar) = (counters.clone(), crossbar.clone());
                let find = move |asked: &Asked| find_over_network(&crossbar, asked);
                let work = move || serve(&network, &to_loop, &counters, find);
                let name = format!("crossbar-{number}");
                threads.push(thread::Builder::new().name(name).spawn(work)?);
            }
        }
        Ok(threads)
    }
}

/// The two ends. `waker` makes the loop's poll return; it is for answers alone.
#[must_use]
pub fn channels(waker: LoopWaker, counters: Arc<InquiryCounters>) -> (Inquiry, Answering) {
    let (to_verify, verify) = bounded(VERIFY_LANE_MAX);
    let (to_network, network) = bounded(CROSSBAR_QUESTIONS_MAX);
    let (to_loop, answers) = bounded(ANSWERS_MAX);
    let inquiry = Inquiry {
        verify: to_verify,
        network: to_network,
        answers,
        waker: waker.clone(),
    };
    let answering = Answering {
        verify,
        network,
        to_loop: ToLoop {
            answers: to_loop,
            waker,
        },
        counters,
    };
    (inquiry, answering)
}

/// A thread's life: answers questions until the loop's end is gone.
fn serve(
    questions: &Receiver<Asked>,
    to_loop: &ToLoop,
    counters: &InquiryCounters,
    find: impl Fn(&Asked) -> Answer,
) {
    for asked in questions {
        let answer = catch_unwind(AssertUnwindSafe(|| find(&asked))).unwrap_or_else(|_| {
            // The panic's own line is in the log already.
            log::error!("inquiry: a thread panicked over a question; it goes on");
            counters.count_panic(&asked.question);
            no_answer(asked.question)
        });
        if to_loop.send(answer).is_err() {
            return;
        }
    }
}

/// What is said when nothing is known.
fn no_answer(question: Question) -> Answer {
    match question {
        Question::Verify { token, .. } => Answer::Verify {
            token,
            verdict: Err(Refusal::Malformed),
        },
        Question::Account { token, account } => Answer::Account {
            token,
            account,
            answer: AccountAnswer::Trouble,
        },
        Question::Key { kid } => Answer::Key {
            kid,
            answer: KeyAnswer::Trouble,
        },
    }
}

fn find_here(counters: &InquiryCounters, asked: &Asked) -> Answer {
    match &asked.question {
        Question::Verify {
            token,
            keys,
            rules,
            unix_now,
        } => {
            let verdict = jwt::verify(token, keys, rules, *unix_now);
            increment(match verdict {
                Ok(_) => &counters.verified,
                Err(_) => &counters.verify_refused,
            });
            Answer::Verify {
                token: token.clone(),
                verdict,
            }
        }
        Question::Account { .. } | Question::Key { .. } => no_answer(asked.question.clone()),
    }
}

fn find_over_network(crossbar: &Crossbar, asked: &Asked) -> Answer {
    if asked.since.elapsed() > CROSSBAR_WAIT_MAX {
        crossbar.note_late(match asked.question {
            Question::Key { .. } => Subject::Key,
            Question::Verify { .. } | Question::Account { .. } => Subject::Account,
        });
        return no_answer(asked.question.clone());
    }
    match &asked.question {
        Question::Verify { .. } => no_answer(asked.question.clone()),
        Question::Account { token, account } => Answer::Account {
            token: token.clone(),
            account: *account,
            answer: crossbar.account(token, *account),
        },
        Question::Key { kid } => Answer::Key {
            kid: kid.clone(),
            answer: crossbar.key(kid),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::AccountId;
    use crate::auth::jwt::{KeyText, Keys, Rules};
    use std::path::Path;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    fn key_question(kid: &str) -> Question {
        Question::Key { kid: kid.into() }
    }

    fn no_waker() -> LoopWaker {
        LoopWaker::new(|| Ok(()))
    }

    /// Takes `count` answers, as they come.
    fn take(inquiry: &Inquiry, count: usize) -> Vec<Answer> {
        let answers =
            std::iter::from_fn(|| inquiry.answers.recv_timeout(Duration::from_secs(20)).ok());
        let answers: Vec<_> = answers.take(count).collect();
        assert_eq!(answers.len(), count);
        answers
    }

    #[test]
    fn a_panic_is_trouble_and_its_thread_goes_on() {
        let counters = Arc::new(InquiryCounters::default());
        let (inquiry, answering) = channels(no_waker(), counters.clone());
        let questions = [
            key_question("bad"),
            Question::Account {
                token: "t".into(),
                account: AccountId::from_bytes([7; 16]),
            },
            key_question("good"),
        ];
        for question in &questions {
            inquiry.ask(question.clone()).expect("there is room");
        }
        let thread = thread::spawn(move || {
            let find = |asked: &Asked| match &asked.question {
                Question::Key { kid } if &**kid == "good" => Answer::Key {
                    kid: kid.clone(),
                    answer: KeyAnswer::Unknown,
                },
                _ => panic!("a panic of this test"),
            };
            serve(
                &answering.network,
                &answering.to_loop,
                &answering.counters,
                find,
            );
        });
        let [bad, account, good] = questions.map(no_answer);
        let answers = take(&inquiry, 3);
        assert_eq!(answers[..2], [bad, account]);
        assert!(
            matches!(&answers[2], Answer::Key { answer: KeyAnswer::Unknown, .. } if answers[2] != good)
        );
        let panics = [&counters.key_panics, &counters.account_panics];
        assert_eq!(panics.map(|one| one.load(Ordering::Relaxed)), [1, 1]);
        drop(inquiry);
        thread.join().expect("it ends with the loop's end");
    }

    #[test]
    fn a_question_that_waited_too_long_is_not_asked() {
        let counters = Arc::new(InquiryCounters::default());
        let options = CrossbarOptions {
            url: CrossbarUrl::parse("http://127.0.0.1:1/").expect("a URL"),
            timeout: Duration::from_secs(1),
            service_token: Some("t".into()),
            authorities: Authorities::System,
        };
        let crossbar = Crossbar::new(options, counters.clone()).expect("no TLS");
        let now = Instant::now();
        for (waited, requests) in [(11, 0), (9, 1)] {
            let asked = Asked {
                question: key_question("0123"),
                since: now
                    .checked_sub(Duration::from_secs(waited))
                    .expect("up for longer"),
            };
            let answer = find_over_network(&crossbar, &asked);
            assert!(answer == no_answer(key_question("0123")), "{answer:?}");
            assert_eq!(counters.key_late.load(Ordering::Relaxed), 1);
            assert_eq!(counters.requests.load(Ordering::Relaxed), requests);
        }
    }

    #[test]
    fn jwts_have_a_thread_of_their_own() {
        let counters = Arc::new(InquiryCounters::default());
        let (inquiry, answering) = channels(no_waker(), counters.clone());
        let pem = include_str!("../../tests/fixtures/system_key.pem").to_owned();
        let keys = Keys::parse(Path::new("key.pem"), &KeyText::File(pem)).expect("a key");
        let (keys, rules) = (Arc::new(keys), Arc::new(Rules::new("kazoo", false)));
        let question = |token: &str| Question::Verify {
            token: token.into(),
            keys: keys.clone(),
            rules: rules.clone(),
            unix_now: 1_700_000_000,
        };
        for _ in 0..VERIFY_LANE_MAX {
            inquiry.ask(question("a.b.c")).expect("there is room");
        }
        let too_many = inquiry
            .ask(question("secret"))
            .expect_err("the lane is full");
        assert!(matches!(&too_many, Question::Verify { token, .. } if &**token == "secret"));
        assert!(!format!("{too_many:?}").contains("secret"));
        let threads = answering.start(true, None).expect("a thread");
        assert_eq!(threads[0].thread().name(), Some("jwt-verify"));
        inquiry
            .ask(key_question("0123"))
            .expect_err("nobody asks the network");
        for answer in take(&inquiry, VERIFY_LANE_MAX) {
            let expected = Answer::Verify {
                token: "a.b.c".into(),
                verdict: Err(Refusal::Malformed),
            };
            assert_eq!(answer, expected);
        }
        let refused = counters.verify_refused.load(Ordering::Relaxed);
        assert_eq!(
            (refused as usize, counters.verified.load(Ordering::Relaxed)),
            (VERIFY_LANE_MAX, 0)
        );
        drop(inquiry);
        for thread in threads {
            thread.join().expect("it ends with the loop's end");
        }
    }

    #[test]
    fn a_burst_of_answers_costs_one_wake_and_one_after_the_last_look_wakes_again() {
        let wakes = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = wakes.clone();
        let waker = LoopWaker::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        let (inquiry, answering) = channels(waker, Arc::default());
        let answer = || answering.answer(no_answer(key_question("0123")));
        for wakes_expected in 1..=2 {
            for _ in 0..10 {
                answer().expect("the loop's end is held");
            }
            assert_eq!(wakes.load(Ordering::Relaxed), wakes_expected);
            assert_eq!(std::iter::from_fn(|| inquiry.try_answer()).count(), 10);
        }
        drop(inquiry);
        answer().expect_err("the loop's end is gone");
    }
}
