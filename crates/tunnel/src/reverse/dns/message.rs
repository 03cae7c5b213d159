//! What is to be known of a message of DNS (RFC 1035, RFC 6891) to pass it on. Pure.

/// Codes of answers.
const FORMERR: u8 = 1;
pub(super) const SERVFAIL: u8 = 2;
const NOTIMP: u8 = 4;
pub(super) const REFUSED: u8 = 5;

/// Bytes of a message's head.
const HEAD: usize = 12;
/// The longest answer by UDP for whoever says nothing of it, and the longest that is believed of those who do.
pub(super) const SHORTEST: usize = 512;
const LONGEST: usize = 4096;
/// Most bytes of a name.
const NAME: usize = 255;
/// The record in which programs say what they take.
const OPT: u16 = 41;
/// Flags: it is an answer; what kind of question; it was cut; the resolver is to go on asking.
const ANSWER: u8 = 0x80;
const OPCODE: u8 = 0x78;
const CUT: u8 = 0x02;
const RECURSION: u8 = 0x01;

/// One question.
#[derive(Debug)]
pub(super) struct Query<'a> {
    /// As it came.
    pub(super) message: &'a [u8],
    /// Labels in lower case, the least first.
    pub(super) name: Vec<Vec<u8>>,
    /// The longest answer that it takes by UDP.
    pub(super) most: usize,
    /// Where the question ends.
    end: usize,
}

/// What is done with a message that is no question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing: an answer to it might be answered again.
    Silence,
    /// It is said what is wrong.
    Answer(Vec<u8>),
}

fn number(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// Labels of the name at the beginning of a question, where nothing can be referred to, and where it ends.
fn name(message: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let (mut labels, mut at) = (Vec::new(), HEAD);
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        match length {
            0 => return (at - HEAD <= NAME).then_some((labels, at)),
            1..=63 => {
                labels.push(message.get(at..at + length)?.to_ascii_lowercase());
                at += length;
            }
            _ => return None,
        }
        if at - HEAD > NAME {
            return None;
        }
    }
}

/// The head of a message and its question as far as `end`, as an answer without records.
fn bare(message: &[u8], end: usize, code: u8) -> Vec<u8> {
    let mut answer = message.get(..end).unwrap_or_default().to_vec();
    let questions = u8::from(end > HEAD);
    if let Some(head) = answer.get_mut(2..HEAD) {
        let kind = head.first().map_or(0, |flags| flags & (OPCODE | RECURSION));
        head.copy_from_slice(&[ANSWER | kind, code, 0, questions, 0, 0, 0, 0, 0, 0]);
    }
    answer
}

impl<'a> Query<'a> {
    /// Reads a query with one question.
    pub(super) fn read(message: &'a [u8]) -> Result<Self, Fault> {
        let head = message.get(..HEAD).ok_or(Fault::Silence)?;
        let flags = head.get(2).copied().unwrap_or(ANSWER);
        if flags & ANSWER != 0 {
            return Err(Fault::Silence);
        }
        if flags & OPCODE != 0 {
            return Err(Fault::Answer(bare(message, HEAD, NOTIMP)));
        }
        let wrong = || Fault::Answer(bare(message, HEAD, FORMERR));
        if number(message, 4) != Some(1) {
            return Err(wrong());
        }
        let (name, end) = name(message).ok_or_else(wrong)?;
        // Type and class.
        let end = end + 4;
        if message.len() < end {
            return Err(wrong());
        }
        // What it takes is said in the record of the root behind the question, where nothing else is between.
        let is_next = number(message, 6) == Some(0) && number(message, 8) == Some(0);
        let says = is_next && message.get(end) == Some(&0) && number(message, end + 1) == Some(OPT);
        let most = number(message, end + 3)
            .filter(|_| says)
            .map_or(SHORTEST, usize::from);
        Ok(Self {
            message,
            name,
            most: most.clamp(SHORTEST, LONGEST),
            end,
        })
    }

    /// An answer that says that there is none.
    pub(super) fn failed(&self, code: u8) -> Vec<u8> {
        bare(self.message, self.end, code)
    }

    /// Whether a message is an answer to this query.
    pub(super) fn is_answered_by(&self, message: &[u8]) -> bool {
        let is_answer = message.get(2).is_some_and(|flags| flags & ANSWER != 0);
        message.len() >= HEAD && is_answer && number(message, 0) == number(self.message, 0)
    }
}

/// An answer of at most so many bytes: of a longer one its head and question, with the word that it was cut, so that the program asks
/// by TCP.
pub(super) fn cut(answer: Vec<u8>, most: usize) -> Vec<u8> {
    if answer.len() <= most {
        return answer;
    }
    let end = match number(&answer, 4) {
        Some(1) => name(&answer).map_or(HEAD, |(_, end)| end + 4),
        _ => HEAD,
    };
    let code = answer.get(3).map_or(0, |flags| flags & 0xf);
    let mut short = bare(&answer, end.min(answer.len()), code);
    if let Some(flags) = short.get_mut(2) {
        *flags |= CUT;
    }
    short
}

#[cfg(test)]
pub(super) use tests::query;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A query for `name`, with what else it says.
    pub(in super::super) fn query(name: &str, more: &[u8]) -> Vec<u8> {
        let additional = u8::from(!more.is_empty());
        let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, additional];
        for label in name.split('.') {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend(label.as_bytes());
        }
        message.extend([0, 0, 1, 0, 1]);
        message.extend(more);
        message
    }

    /// It takes so many bytes.
    fn takes(bytes: u16) -> Vec<u8> {
        let [high, low] = bytes.to_be_bytes();
        vec![0, 0, 41, high, low, 0, 0, 0, 0, 0, 0]
    }

    #[test]
    fn a_question_is_read() {
        let message = query("Web.shop.SVC", &[]);
        let read = Query::read(&message).unwrap();
        assert_eq!(read.name, [&b"web"[..], b"shop", b"svc"]);
        assert_eq!(read.most, 512);
        for (says, most) in [(1232, 1232), (100, 512), (65535, 4096)] {
            let message = query("a", &takes(says));
            assert_eq!(Query::read(&message).unwrap().most, most);
        }
        let refused = read.failed(REFUSED);
        assert_eq!(refused[..12], [0xab, 0xcd, 0x81, 5, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(refused[12..], message[12..]);
        assert!(read.is_answered_by(&refused) && !read.is_answered_by(&message));
        assert!(!read.is_answered_by(&[0xab, 0xcd, 0x80]));
    }

    #[test]
    fn what_is_no_question_is_answered_or_not() {
        let good = query("a", &[]);
        let with = |at: usize, byte: u8| {
            let mut message = good.clone();
            message[at] = byte;
            Query::read(&message).map(|_| ()).unwrap_err()
        };
        assert_eq!(with(2, 0x81), Fault::Silence, "an answer is not answered");
        assert!(matches!(with(2, 0x28), Fault::Answer(answer) if answer[3] == NOTIMP));
        assert!(matches!(with(5, 2), Fault::Answer(answer) if answer[3] == FORMERR));
        assert!(matches!(with(12, 0xc0), Fault::Answer(answer) if answer.len() == 12));
        assert_eq!(Query::read(&good[..11]).map(|_| ()), Err(Fault::Silence));
        let long = query(&["abcdefg"; 33].join("."), &[]);
        assert!(Query::read(&long).is_err());
    }

    #[test]
    fn what_is_too_long_is_cut() {
        let mut answer = query("web.shop", &[]);
        answer[2] = 0x85;
        answer[7] = 40;
        let question = answer.len();
        answer.resize(900, 7);
        assert_eq!(cut(answer.clone(), 900), answer);
        let short = cut(answer.clone(), 512);
        assert_eq!((short.len(), short[2]), (question, 0x83));
        assert_eq!(short[6..12], [0; 6]);
        assert_eq!(short[12..], answer[12..question]);
    }

    proptest! {
        #[test]
        fn no_message_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600), at in 0usize..40, with: u8) {
            let mut message = query("web.shop.svc.cluster.local", &takes(1232));
            message[at] = with;
            for message in [&bytes, &message] {
                match Query::read(message) {
                    Ok(query) => {
                        let failed = query.failed(SERVFAIL);
                        prop_assert!(query.is_answered_by(&failed));
                        prop_assert!(query.most >= SHORTEST && query.most <= LONGEST);
                    }
                    Err(Fault::Answer(answer)) => prop_assert_eq!(answer.len(), HEAD),
                    Err(Fault::Silence) => {}
                }
                prop_assert!(cut(message.clone(), 512).len() <= 512);
            }
        }
    }
}
