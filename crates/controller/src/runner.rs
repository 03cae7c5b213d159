//! Runs a controller: from changes to keys, from keys to calls of [`Controller::reconcile`].

use crate::{
    Change, Collection, Context, Key, Scope,
    kube::KubeError,
    metrics::{Outcome, Reconciles},
    queue::Queue,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The longest pause after a failure that is not the object's: the server is away, or has too much to do.
const LONGEST_OUTAGE_PAUSE: Duration = Duration::from_secs(15);

/// What a controller does after it looked at an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait for changes.
    Done,
    /// Look again after this time, whatever happens meanwhile.
    After(Duration),
}

/// Why an object could not be brought in order. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A call failed.
    #[error(transparent)]
    Kube(#[from] KubeError),
    /// The object asks for something that cannot be.
    #[error("{0}")]
    Object(String),
}

impl Failure {
    /// Whether another writer was there first: the loser looks again, which is the normal course.
    fn is_conflict(&self) -> bool {
        matches!(self, Self::Kube(error) if error.is_conflict())
    }

    /// Has the object tried again; after which pause.
    fn retry(&self, queue: &Queue, key: &Key) -> Duration {
        match self {
            Self::Kube(error) if error.is_outage() => queue.retry_within(key, LONGEST_OUTAGE_PAUSE),
            Self::Kube(_) | Self::Object(_) => queue.retry(key),
        }
    }
}

/// The keys that a change concerns.
pub type Concerns = Box<dyn Fn(&Change) -> Vec<Key> + Send + Sync>;

/// What a controller watches: a collection, and which of the controller's own keys a change in it concerns.
pub struct Watch {
    /// The collection.
    pub collection: Collection,
    /// What part of it.
    pub scope: Scope,
    /// The keys to look at.
    pub concerns: Concerns,
}

impl Watch {
    /// Each change concerns the object itself.
    pub fn own(collection: Collection) -> Self {
        Self::of(collection, |change| vec![change.key()])
    }

    /// Each change concerns the controller (owner reference with `controller: true`) of kind `owner_kind`.
    pub fn owned(collection: Collection, owner_kind: &'static str) -> Self {
        Self::of(collection, move |change| {
            let mut keys = Vec::new();
            for object in [&change.old, &change.new].into_iter().flatten() {
                if let Some(owner) = crate::objects::controller_of(object)
                    && owner["kind"] == owner_kind
                {
                    let key = Key::new(
                        object["metadata"]["namespace"].as_str().unwrap_or_default(),
                        owner["name"].as_str().unwrap_or_default(),
                    );
                    if !keys.contains(&key) {
                        keys.push(key);
                    }
                }
            }
            keys
        })
    }

    /// Any mapping.
    pub fn of(
        collection: Collection,
        concerns: impl Fn(&Change) -> Vec<Key> + Send + Sync + 'static,
    ) -> Self {
        Self {
            collection,
            scope: Scope::default(),
            concerns: Box::new(concerns),
        }
    }

    /// The same of a part of the collection, or of its metadata only.
    pub fn scoped(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }
}

/// A controller.
pub trait Controller: Send + Sync + 'static {
    /// Its name, for logs.
    const NAME: &'static str;
    /// How many keys it works on at once.
    const WORKERS: usize = 4;

    /// What it watches. Whatever it reads from [`Context::objects`] must be watched, by it or because [`Context::objects`] was
    /// called before: reading begins when all of these are complete.
    fn watches(&self, context: &Arc<Context>) -> Vec<Watch>;

    /// Brings one object in order. Called for each key that changed, never twice at once for one key.
    fn reconcile(
        &self,
        key: &Key,
        context: &Context,
    ) -> impl Future<Output = Result<Next, Failure>> + Send;
}

/// Runs a controller until the context ends.
pub fn run<C: Controller>(context: &Arc<Context>, controller: C) {
    run_with(context, controller, C::WORKERS);
}

/// [`run`] with another number of workers.
pub fn run_with<C: Controller>(context: &Arc<Context>, controller: C, workers: usize) {
    let controller = Arc::new(controller);
    let workers = workers.max(1);
    let queue = Arc::new(Queue::counted(context.metrics().queue(C::NAME)));
    let reconciles = Arc::new(context.metrics().controller(C::NAME, workers));
    let mut collections = Vec::new();
    for Watch {
        collection,
        scope,
        concerns,
    } in controller.watches(context)
    {
        let objects = context.scoped(&collection, &scope);
        let queue = queue.clone();
        objects.subscribe(move |change| {
            for key in concerns(change) {
                queue.add(key);
            }
        });
        collections.push(objects);
    }
    let context = context.clone();
    let tasks = context.tasks().clone();
    tasks.spawn(async move {
        let shutdown = context.shutdown().clone();
        for objects in &collections {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = objects.synced() => {}
            }
        }
        for _ in 0..workers {
            let (controller, queue, context) = (controller.clone(), queue.clone(), context.clone());
            let reconciles = reconciles.clone();
            context.tasks().clone().spawn(async move {
                let shutdown = context.shutdown().clone();
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = work(&*controller, &queue, &context, &reconciles) => {}
                }
            });
        }
    });
}

async fn work<C: Controller>(
    controller: &C,
    queue: &Queue,
    context: &Context,
    reconciles: &Reconciles,
) {
    loop {
        let key = queue.next().await;
        let (began, active) = (Instant::now(), reconciles.begin());
        let ended = controller.reconcile(&key, context).await;
        drop(active);
        let outcome = match &ended {
            Ok(Next::Done) => Outcome::Success,
            Ok(Next::After(_)) => Outcome::RequeueAfter,
            Err(failure) if failure.is_conflict() => Outcome::Requeue,
            Err(_) => Outcome::Error,
        };
        reconciles.ended(outcome, began.elapsed());
        match ended {
            Ok(next) => {
                queue.forget(&key);
                if let Next::After(pause) = next {
                    queue.add_after(key.clone(), pause);
                }
            }
            Err(failure) => {
                let pause = failure.retry(queue, &key);
                if outcome == Outcome::Requeue {
                    tracing::debug!(controller = C::NAME, %key, %failure, ?pause, "again");
                } else {
                    tracing::warn!(controller = C::NAME, %key, %failure, ?pause, "again");
                }
            }
        }
        queue.done(&key);
    }
}
