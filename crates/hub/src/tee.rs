//! Feeding the cache beside a stream: the client's bytes go by untouched while a bounded copy of them is held, which is
//! decoded and learned after the client has everything. Never slows the client: what does not fit is counted and not learned.

mod passing;

use crate::{
    cache::{Asked, Cache, ListLearner},
    caller::Caller,
    metrics::{Metrics, Unlearned},
    query::Query,
    tokens::{Tokens, question::Question},
};
use bytes::{Bytes, BytesMut};
pub use passing::{Counted, Passing, Silence};
use serde_json::Value;
use std::{
    collections::VecDeque,
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::sync::mpsc;
use yurt_wire::{
    Encoding, Gvr, Object,
    list::{self, SplitList},
};

/// Answers that wait to be learned.
const QUEUE: usize = 512;
/// Bytes of a list that are taught at one time.
const SLICE: usize = 1 << 20;
/// Paged lists under way.
const PAGED_LISTS: usize = 32;
/// Answers above this size are decoded where they hold up nothing else.
const HEAVY: usize = 128 << 10;
/// A compressed answer may grow to this multiple of the bound on held bytes.
const INFLATION: usize = 4;

/// What an answer teaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// One object of a resource.
    Object(Gvr),
    /// A 404 or a delete: when the body is a Status, the object is gone.
    Absence {
        /// Resource.
        gvr: Gvr,
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
    },
    /// One page of a list.
    List {
        /// What was asked for.
        query: Query,
        /// The `continue` the page was asked for with, `""` for the first.
        continued: String,
    },
    /// A non-resource document, under its key in the cache.
    Document {
        /// The key.
        path: String,
        /// Its content type.
        content_type: String,
    },
    /// The answer to a question about tokens or rights.
    Answer {
        /// The question.
        question: Question,
        /// Its body as it was sent.
        asked: Object,
    },
}

/// One answer to learn from.
#[derive(Debug)]
pub struct Lesson {
    /// Who got it.
    pub caller: Caller,
    /// What it is.
    pub subject: Subject,
    /// When it was asked for.
    pub asked: Asked,
    /// Encoding of the body.
    pub encoding: Encoding,
    /// Whether the body is compressed with gzip.
    pub gzip: bool,
    /// The body as it came.
    pub body: Vec<Bytes>,
}

/// Hands lessons to the one task that learns.
#[derive(Clone, Debug)]
pub struct Teacher {
    lessons: mpsc::Sender<(Lesson, Reserved)>,
    held: Arc<AtomicUsize>,
    most_held: usize,
    most_one: usize,
    metrics: Metrics,
}

/// Bytes reserved from the bound on all held answers; given back on drop.
#[derive(Debug)]
pub struct Reserved {
    held: Arc<AtomicUsize>,
    bytes: usize,
}

impl Reserved {
    fn grow(&mut self, bytes: usize, most: usize) -> bool {
        let grown = self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                held.checked_add(bytes).filter(|sum| *sum <= most)
            })
            .is_ok();
        if grown {
            self.bytes += bytes;
        }
        grown
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Teacher {
    /// A teacher and the task that learns into `cache` until all handles are dropped. `most_one` bounds one answer,
    /// `most_held` all together, in bytes.
    pub fn new(
        cache: Cache,
        tokens: Tokens,
        metrics: Metrics,
        most_one: usize,
        most_held: usize,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (lessons, mut queue) = mpsc::channel::<(Lesson, Reserved)>(QUEUE);
        let teacher = Self {
            lessons,
            held: Arc::default(),
            most_held,
            most_one,
            metrics: metrics.clone(),
        };
        let learning = async move {
            let limit = most_one.saturating_mul(INFLATION);
            let mut paged = Paged::default();
            while let Some((lesson, reserved)) = queue.recv().await {
                let asked = lesson.asked;
                let decoded = if reserved.bytes > HEAVY {
                    match tokio::task::spawn_blocking(move || decode(lesson, limit)).await {
                        Ok(decoded) => decoded,
                        // The runtime is going down.
                        Err(_) => return,
                    }
                } else {
                    decode(lesson, limit)
                };
                let learned = match decoded {
                    Ok((
                        caller,
                        News::Page {
                            query,
                            continued,
                            page,
                        },
                    )) => {
                        paged.learn(&cache, caller, query, &continued, *page).await;
                        Ok(())
                    }
                    Ok((caller, News::Object(gvr, object))) => {
                        cache.learn_object(&caller, &gvr, &object, asked);
                        Ok(())
                    }
                    Ok((
                        caller,
                        News::Absence {
                            gvr,
                            namespace,
                            name,
                        },
                    )) => {
                        cache.learn_absent(&caller, &gvr, &namespace, &name, asked);
                        Ok(())
                    }
                    Ok((
                        _,
                        News::Document {
                            path,
                            content_type,
                            body,
                        },
                    )) => {
                        cache.learn_document(&path, &content_type, body);
                        Ok(())
                    }
                    Ok((
                        _,
                        News::Answer {
                            question,
                            asked,
                            answer,
                        },
                    )) => {
                        tokens.learn(&question, &asked, &answer, crate::offline::now());
                        Ok(())
                    }
                    Ok((_, News::Nothing)) => Ok(()),
                    Err(why) => Err(why),
                };
                if let Err(why) = learned {
                    metrics.unlearned(why);
                }
                drop(reserved);
            }
        };
        (teacher, learning)
    }

    /// Begins to hold an answer.
    pub fn tee(
        &self,
        caller: Caller,
        subject: Subject,
        asked: Asked,
        encoding: Encoding,
        gzip: bool,
    ) -> Tee {
        Tee {
            lesson: Some(Lesson {
                caller,
                subject,
                asked,
                encoding,
                gzip,
                body: Vec::new(),
            }),
            reserved: Some(Reserved {
                held: self.held.clone(),
                bytes: 0,
            }),
            teacher: self.clone(),
        }
    }
}

/// A bounded copy of one answer on its way to the client.
#[derive(Debug)]
pub struct Tee {
    lesson: Option<Lesson>,
    reserved: Option<Reserved>,
    teacher: Teacher,
}

impl Tee {
    /// A chunk went by.
    pub fn push(&mut self, chunk: &Bytes) {
        let (Some(lesson), Some(reserved)) = (&mut self.lesson, &mut self.reserved) else {
            return;
        };
        let too_large = reserved.bytes + chunk.len() > self.teacher.most_one;
        if too_large || !reserved.grow(chunk.len(), self.teacher.most_held) {
            self.teacher.metrics.unlearned(if too_large {
                Unlearned::TooLarge
            } else {
                Unlearned::Busy
            });
            self.lesson = None;
            self.reserved = None;
            return;
        }
        lesson.body.push(chunk.clone());
    }

    /// The answer is complete.
    pub fn finish(&mut self) {
        if let (Some(lesson), Some(reserved)) = (self.lesson.take(), self.reserved.take())
            && self.teacher.lessons.try_send((lesson, reserved)).is_err()
        {
            self.teacher.metrics.unlearned(Unlearned::Busy);
        }
    }
}

/// An answer, understood.
enum News {
    Object(Gvr, Object),
    Absence {
        gvr: Gvr,
        namespace: String,
        name: String,
    },
    Page {
        query: Query,
        continued: String,
        page: Box<SplitList>,
    },
    Document {
        path: String,
        content_type: String,
        body: Bytes,
    },
    Answer {
        question: Question,
        asked: Value,
        answer: Value,
    },
    /// A Status where an object was expected, or the other way round.
    Nothing,
}

fn decode(lesson: Lesson, limit: usize) -> Result<(Caller, News), Unlearned> {
    let body = if lesson.gzip {
        inflate(lesson.body, limit)?
    } else {
        join(lesson.body)
    };
    let object = |bytes| Object {
        encoding: lesson.encoding,
        bytes,
    };
    let kind = |object: &Object| -> Result<(bool, bool), Unlearned> {
        let id = object.key().map_err(|_| Unlearned::Undecodable)?;
        let status = id.api_version == "v1" && id.kind == "Status";
        Ok((status, id.name.is_empty()))
    };
    let news = match lesson.subject {
        Subject::Document { path, content_type } => News::Document {
            path,
            content_type,
            body,
        },
        Subject::List { query, continued } => News::Page {
            query,
            continued,
            page: Box::new(
                list::split(&body, lesson.encoding).map_err(|_| Unlearned::Undecodable)?,
            ),
        },
        Subject::Answer { question, asked } => {
            let value =
                |object: &Object| object.to_json_value().map_err(|_| Unlearned::Undecodable);
            News::Answer {
                question,
                asked: value(&asked)?,
                answer: value(&object(body))?,
            }
        }
        Subject::Object(gvr) => {
            let object = object(body);
            match kind(&object)? {
                (false, false) => News::Object(gvr, object),
                _ => News::Nothing,
            }
        }
        Subject::Absence {
            gvr,
            namespace,
            name,
        } => match kind(&object(body))? {
            (true, _) => News::Absence {
                gvr,
                namespace,
                name,
            },
            _ => News::Nothing,
        },
    };
    Ok((lesson.caller, news))
}

/// Teaches one page, in slices with a pause for the disk in between: what waits for the disk is bounded, and what finds no room
/// there would be lost.
pub(crate) async fn teach_page(cache: &Cache, learner: &mut ListLearner, mut page: SplitList) {
    let mut items = std::mem::take(&mut page.items).into_iter().peekable();
    loop {
        let mut slice = SplitList {
            items: Vec::new(),
            ..page.clone()
        };
        let mut bytes = 0;
        while let Some(item) = items.next_if(|item| bytes == 0 || bytes + item.bytes.len() <= SLICE)
        {
            bytes += item.bytes.len();
            slice.items.push(item);
        }
        learner.page(slice);
        if items.peek().is_none() {
            return;
        }
        if let Err(error) = cache.flush().await {
            tracing::warn!(%error, "the cache's disk does not take a list");
        }
    }
}

/// Lists of which some pages came, by who asks and the token of the next page; oldest first.
#[derive(Debug, Default)]
struct Paged(VecDeque<(Caller, Query, String, ListLearner)>);

impl Paged {
    async fn learn(
        &mut self,
        cache: &Cache,
        caller: Caller,
        query: Query,
        continued: &str,
        page: SplitList,
    ) {
        let begun = self
            .0
            .iter()
            .position(|(c, q, token, _)| *c == caller && *q == query && token == continued)
            .filter(|_| !continued.is_empty())
            .and_then(|index| self.0.remove(index));
        // A continued list whose beginning was not seen (a restart, too many at a time) teaches its objects, not completeness.
        let whole = continued.is_empty() || begun.is_some();
        let mut learner = match begun {
            Some((_, _, _, learner)) => learner,
            None => cache.list_learner(&caller, &query),
        };
        let next = page.continue_token.clone();
        teach_page(cache, &mut learner, page).await;
        if !whole {
            return;
        }
        if next.is_empty() {
            learner.finish();
            return;
        }
        if self.0.len() >= PAGED_LISTS {
            self.0.pop_front();
        }
        self.0.push_back((caller, query, next, learner));
    }
}

/// One buffer of its own: what is learned must not keep the connection's read buffers alive.
fn join(chunks: Vec<Bytes>) -> Bytes {
    let mut joined = BytesMut::with_capacity(chunks.iter().map(Bytes::len).sum());
    for chunk in chunks {
        joined.extend_from_slice(&chunk);
    }
    joined.freeze()
}

pub(crate) fn inflate(chunks: Vec<Bytes>, limit: usize) -> Result<Bytes, Unlearned> {
    let compressed = join(chunks);
    let mut inflated = Vec::new();
    flate2::read::MultiGzDecoder::new(&compressed[..])
        .take(limit as u64 + 1)
        .read_to_end(&mut inflated)
        .map_err(|_| Unlearned::Undecodable)?;
    if inflated.len() > limit {
        return Err(Unlearned::TooLarge);
    }
    Ok(inflated.into())
}
