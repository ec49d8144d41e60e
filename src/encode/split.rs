//! An item that fails does not take its batch along, pure: the batch is split until the item stands alone.
//!
//! Whether the item is at fault or the encoder (out of memory, device lost) is found out by asking for the vector of an
//! input that is known to be good: an outage must never reject a post for good.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::encode::norm;
use crate::error::{Fault, Outage, Reason};

/// Raw features of a batch, or why there are none.
pub type Encoded = Result<Vec<Vec<f32>>, Fault>;

/// Encodes a batch: an answer for each input, in order.
///
/// [`Fault::Reject`] is for an input that fails alone while `known_good` does not; [`Fault::Retry`] where `known_good`
/// fails too. Features that cannot be normalised are asked for once more, alone (a model with dynamic quantisation
/// scales by the extremes of the whole batch); if they come again while `known_good` has better ones, they are the
/// answer.
pub fn encode_each<T>(
    inputs: &[T],
    known_good: &T,
    encode: &mut dyn FnMut(&[T]) -> Encoded,
) -> Vec<Result<Vec<f32>, Fault>> {
    let mut split = Split { known_good, encode, outage: None, answers: Vec::with_capacity(inputs.len()) };
    split.run(inputs);
    split.answers
}

struct Split<'a, T> {
    known_good: &'a T,
    encode: &'a mut dyn FnMut(&[T]) -> Encoded,
    /// Once found, no further input is tried.
    outage: Option<Fault>,
    answers: Vec<Result<Vec<f32>, Fault>>,
}

impl<T> Split<'_, T> {
    fn run(&mut self, inputs: &[T]) {
        if let Some(outage) = &self.outage {
            self.answers.extend(inputs.iter().map(|_| Err(outage.clone())));
            return;
        }
        if inputs.is_empty() {
            return;
        }
        match self.attempt(inputs) {
            Ok(rows) => {
                for (input, row) in inputs.iter().zip(rows) {
                    self.settle(input, row, inputs.len() == 1);
                }
            }
            Err(Fault::Reject { .. }) if inputs.len() > 1 => {
                let (left, right) = inputs.split_at(inputs.len() / 2);
                self.run(left);
                self.run(right);
            }
            Err(fault @ Fault::Reject { .. }) => {
                let answer = if self.encoder_works(&fault) { Err(fault) } else { Err(self.out_of_order()) };
                self.answers.push(answer);
            }
            Err(fault) => {
                self.outage = Some(fault);
                self.run(inputs);
            }
        }
    }

    fn settle(&mut self, input: &T, row: Vec<f32>, alone: bool) {
        if norm(&row).is_some() {
            self.answers.push(Ok(row));
        } else if !alone {
            self.run(std::slice::from_ref(input));
        } else if self.encoder_works(&"features that are zero, infinite or not a number") {
            self.answers.push(Ok(row));
        } else {
            let outage = self.out_of_order();
            self.answers.push(Err(outage));
        }
    }

    /// A panic is the batch's failure as an error is: its message must not be redelivered to one worker after another.
    fn attempt(&mut self, inputs: &[T]) -> Encoded {
        let encoded = catch_unwind(AssertUnwindSafe(|| (self.encode)(inputs)));
        let rows = encoded.unwrap_or_else(|_| Err(Fault::reject(Reason::EncodeFailed, "the encoder panicked")))?;
        if rows.len() == inputs.len() {
            return Ok(rows);
        }
        Err(Fault::fatal(format!(
            "the encoder gave {} vectors for {} inputs. This is a bug.",
            rows.len(),
            inputs.len()
        )))
    }

    fn encoder_works(&mut self, cause: &dyn std::fmt::Display) -> bool {
        let rows = self.attempt(std::slice::from_ref(self.known_good));
        let works = rows.as_ref().is_ok_and(|rows| rows.iter().all(|row| norm(row).is_some()));
        if !works {
            let detail = format!("the encoder is out of order, it fails for a good input too: {cause}");
            tracing::error!("{detail}");
            self.outage = Some(Fault::retry(Outage::Encoder, detail));
        }
        works
    }

    fn out_of_order(&self) -> Fault {
        self.outage.clone().unwrap_or_else(|| Fault::retry(Outage::Encoder, "the encoder is out of order"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: u32 = 1;
    const POISON: u32 = 13;
    const PANICS: u32 = 14;
    const NOT_A_NUMBER: u32 = 15;

    /// Features of one input. `POISON` and `PANICS` take their whole batch along, `NOT_A_NUMBER` its neighbours' values,
    /// as dynamic quantisation does.
    fn encode(inputs: &[u32]) -> Encoded {
        if inputs.contains(&PANICS) {
            panic!("on purpose");
        }
        if inputs.contains(&POISON) {
            return Err(Fault::reject(Reason::EncodeFailed, "thirteen"));
        }
        let spoilt = inputs.contains(&NOT_A_NUMBER);
        Ok(inputs.iter().map(|input| vec![if spoilt { f32::NAN } else { *input as f32 }, 1.0]).collect())
    }

    fn is_rejected(answer: &Result<Vec<f32>, Fault>) -> bool {
        matches!(answer, Err(Fault::Reject { reason: Reason::EncodeFailed, .. }))
    }

    fn is_outage(answer: &Result<Vec<f32>, Fault>) -> bool {
        matches!(answer, Err(Fault::Retry { outage: Outage::Encoder, .. }))
    }

    proptest! {
        #[test]
        fn items_at_fault_fail_alone(inputs in prop::collection::vec(1_u32..30, 0..40)) {
            let answers = encode_each(&inputs, &GOOD, &mut encode);
            prop_assert_eq!(answers.len(), inputs.len());
            for (input, answer) in inputs.iter().zip(&answers) {
                match *input {
                    POISON | PANICS => prop_assert!(is_rejected(answer), "{input}: {answer:?}"),
                    NOT_A_NUMBER => prop_assert!(answer.as_ref().is_ok_and(|row| row[0].is_nan()), "{answer:?}"),
                    _ => prop_assert_eq!(answer.as_ref().expect("encoded"), &vec![*input as f32, 1.0]),
                }
            }
        }
    }

    #[test]
    fn outage_rejects_nothing() {
        let inputs = (1..=32).collect::<Vec<_>>();
        let mut runs = 0;
        let answers = encode_each(&inputs, &GOOD, &mut |_| {
            runs += 1;
            Err(Fault::reject(Reason::EncodeFailed, "out of memory"))
        });
        assert!(answers.len() == 32 && answers.iter().all(is_outage), "{answers:?}");
        assert_eq!(runs, 7, "32, 16, 8, 4, 2, 1 and the good one: nothing is tried once the outage is known");
    }

    #[test]
    fn memory_that_suffices_for_half_a_batch_is_no_outage() {
        let inputs = (1..=8).collect::<Vec<_>>();
        let answers = encode_each(&inputs, &GOOD, &mut |inputs| {
            if inputs.len() > 4 { Err(Fault::reject(Reason::EncodeFailed, "out of memory")) } else { encode(inputs) }
        });
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    }

    #[test]
    fn device_lost_after_a_poison_item_was_found_rejects_no_other() {
        let inputs = [POISON, 2, 3, 4];
        let mut lost = false;
        let answers = encode_each(&inputs, &GOOD, &mut |inputs| {
            if lost {
                return Err(Fault::reject(Reason::EncodeFailed, "device lost"));
            }
            lost = inputs == [GOOD];
            encode(inputs)
        });
        assert!(is_rejected(&answers[0]) && answers[1..].iter().all(is_outage), "{answers:?}");
    }

    #[test]
    fn device_that_gives_only_zeros_rejects_nothing() {
        let answers = encode_each(&[1, 2, 3], &GOOD, &mut |inputs| Ok(vec![vec![0.0; 2]; inputs.len()]));
        assert!(answers.iter().all(is_outage), "{answers:?}");
    }

    #[test]
    fn fatal_fault_is_everyones() {
        let answers = encode_each(&[1, 2], &GOOD, &mut |_| Err(Fault::fatal("no file")));
        assert!(answers.iter().all(|answer| matches!(answer, Err(Fault::Fatal(_)))), "{answers:?}");
    }
}
