//! One round of bringing a lease in the cloud up to date: which request follows on which answer. Pure.

use serde_json::Value;

/// A request to the cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Get,
    Create,
    Put,
}

/// What follows from an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Next {
    Ask(Step),
    /// The lease as the cloud has it now.
    Renewed(Value),
    /// There is none, and no kubelet that would want one.
    Absent,
    /// The cloud says no; asking again changes nothing.
    Refused(u16),
    /// No answer, or none that says anything, as often as may be tried.
    Failed(String),
}

/// One round of renewing.
#[derive(Debug)]
pub(crate) struct Round {
    /// Attempts left that achieve nothing.
    pub(crate) left: u32,
    /// Whether a lease that is not there is made.
    pub(crate) may_create: bool,
}

impl Round {
    /// What to ask first, knowing `base`.
    pub(crate) fn first(base: Option<&Value>) -> Step {
        match base {
            Some(_) => Step::Put,
            None => Step::Get,
        }
    }

    /// Decides on an answer: its code and body, or what went wrong. `base` is what the next step is built on.
    pub(crate) fn after(
        &mut self,
        step: Step,
        answer: Result<(u16, Value), String>,
        base: &mut Option<Value>,
    ) -> Next {
        let (code, body) = match answer {
            Ok(answer) => answer,
            Err(why) => return self.again(step, why),
        };
        match (step, code) {
            (Step::Get, 200) => {
                *base = Some(body);
                Next::Ask(Step::Put)
            }
            (Step::Put | Step::Create, 200..=299) => {
                *base = Some(body.clone());
                Next::Renewed(body)
            }
            (Step::Get | Step::Put, 404) => {
                *base = None;
                if self.may_create {
                    Next::Ask(Step::Create)
                } else {
                    Next::Absent
                }
            }
            // Somebody else wrote it: on top of that.
            (Step::Put | Step::Create, 409) => {
                *base = None;
                self.again(Step::Get, "no end of conflicts".into())
            }
            (_, 408 | 429 | 500..) => self.again(step, format!("the cloud answered {code}")),
            (_, code) => Next::Refused(code),
        }
    }

    fn again(&mut self, step: Step, why: String) -> Next {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            return Next::Failed(why);
        }
        Next::Ask(step)
    }
}
