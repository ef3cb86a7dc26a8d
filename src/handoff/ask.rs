//! Two bounded channels and a waker, for a thread that asks the loop something: questions one way, answers the other.
//!
//! Neither end ever waits for the other. A question that finds no room comes back to its asker. The loop takes a question
//! only while there is room for one more answer than are under way, so an answer always finds room.
//!
//! Invariants: the waker's flag is lowered before questions are looked for, so one that comes afterwards wakes the loop. The
//! loop has taken at most one question whose answer it has not given.

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::wake::LoopWaker;

/// The end of the thread that asks.
pub struct AskEnd<Q, A> {
    questions: Sender<Q>,
    /// The answers, in the order of their questions; public so that it can be `select!`ed on. Disconnected: the loop is
    /// gone.
    pub answers: Receiver<A>,
    waker: LoopWaker,
}

/// The loop's end.
pub struct AnswerEnd<Q, A> {
    questions: Receiver<Q>,
    answers: Sender<A>,
    waker: LoopWaker,
}

/// Both ends. So many questions may wait for the loop, and so many answers for the asker; `waker` wakes the loop, and is
/// used for nothing else.
#[must_use]
pub fn ask_channels<Q, A>(
    waker: LoopWaker,
    questions_max: usize,
    answers_max: usize,
) -> (AskEnd<Q, A>, AnswerEnd<Q, A>) {
    let (ask, questions) = bounded(questions_max);
    let (answer, answers) = bounded(answers_max);
    (
        AskEnd {
            questions: ask,
            answers,
            waker: waker.clone(),
        },
        AnswerEnd {
            questions,
            answers: answer,
            waker,
        },
    )
}

impl<Q, A> AskEnd<Q, A> {
    /// Asks, without waiting.
    ///
    /// # Errors
    /// The question back: too many wait for the loop, or it is gone.
    pub fn try_ask(&self, question: Q) -> Result<(), Q> {
        match self.questions.try_send(question) {
            Ok(()) => {
                self.waker.wake();
                Ok(())
            }
            Err(TrySendError::Full(question) | TrySendError::Disconnected(question)) => {
                Err(question)
            }
        }
    }

    /// To be called after an answer was taken: the loop may have waited for the room.
    pub fn took_answer(&self) {
        if !self.questions.is_empty() {
            self.waker.wake();
        }
    }
}

impl<Q, A> AnswerEnd<Q, A> {
    /// The next question, if there is room for its answer. O(1).
    pub(crate) fn try_take(&self) -> Option<Q> {
        self.waker.clear();
        if self.answers.is_full() {
            return None;
        }
        self.questions.try_recv().ok()
    }

    /// Whether [`AnswerEnd::try_take`] would give something.
    pub(crate) fn has_question(&self) -> bool {
        !self.questions.is_empty() && !self.answers.is_full()
    }

    /// Answers the question that was taken.
    pub(crate) fn answer(&self, answer: A) {
        // An error: the asker is gone, for there is room.
        let _gone = self.answers.try_send(answer);
    }

    /// Questions that wait (a gauge).
    pub(crate) fn waiting(&self) -> usize {
        self.questions.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_question_that_finds_no_room_comes_back_and_an_answer_always_finds_some() {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counted = wakes.clone();
        let waker = LoopWaker::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        let (asker, answerer) = ask_channels::<u32, u32>(waker, 3, 2);
        for question in 0..3 {
            assert_eq!(asker.try_ask(question), Ok(()));
        }
        assert_eq!(asker.try_ask(3), Err(3));
        assert_eq!((wakes.load(Ordering::Relaxed), answerer.waiting()), (1, 3));
        for expected in 0..2 {
            let question = answerer.try_take().expect("it waits");
            assert_eq!(question, expected);
            answerer.answer(10 * question);
        }
        // The asker takes no answers, so no more questions are taken.
        assert_eq!(
            (answerer.has_question(), answerer.try_take()),
            (false, None)
        );
        assert_eq!(asker.answers.try_recv(), Ok(0));
        asker.took_answer();
        assert_eq!(wakes.load(Ordering::Relaxed), 2);
        assert_eq!(
            (answerer.has_question(), answerer.try_take()),
            (true, Some(2))
        );
        assert_eq!(asker.try_ask(4), Ok(()));
        assert_eq!(wakes.load(Ordering::Relaxed), 3);
        drop(asker.answers);
        answerer.answer(20);
        drop(answerer);
        assert_eq!(asker.questions.try_send(5).map_err(|_| ()), Err(()));
    }
}
