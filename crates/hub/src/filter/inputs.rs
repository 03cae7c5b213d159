//! Keeps true which filters are in force and what they know: flags, config maps, users' filters, the node's pool, services' topologies,
//! the node's labels. What only some filters ask for is followed from the first request on that passes one of them.

use super::{
    Chain, Context, Filter, Force, Inputs, Topologies, chain::BuiltIn, chain::Selection, value_of,
};
use crate::{
    config::Config, follow, metrics::Metrics, pool::Membership, proxy::Hub, settings::Settings,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::AtomicUsize},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use yurt_wire::{Object, RequestInfo};

/// The annotation of a service that says for which nodes its endpoints are.
pub const TOPOLOGY_KEYS: &str = "openyurt.io/topologyKeys";
/// How long answers wait, after the first that asked, for services and the pool to be known; from the cache they are at once.
const READY: Duration = Duration::from_secs(2);
/// Clients of which is remembered what they were shown by.
const MOST_TOLD: usize = 256;
/// Longest annotation that is kept.
const LONGEST_TOPOLOGY: usize = 1024;

type Labels = BTreeMap<String, String>;

/// The hub's filters.
#[derive(Debug)]
pub struct Filters {
    built_in: BuiltIn,
    force: watch::Sender<Arc<Force>>,
    users: watch::Sender<Vec<Arc<dyn Filter>>>,
    wanted: watch::Sender<Inputs>,
    first_wanted: OnceLock<Instant>,
    told: Mutex<VecDeque<(u64, Arc<Force>)>>,
    held: Arc<AtomicUsize>,
}

impl Filters {
    /// As flags say, until `keep` knows more.
    pub fn new(config: &Config) -> Self {
        let built_in = BuiltIn::default();
        let context = context(config, &Settings::of_flags(config));
        let selection = selection(config, &Settings::default());
        let force = Force::of(&built_in, &[], &selection, context);
        Self {
            built_in,
            force: watch::Sender::new(Arc::new(force)),
            users: watch::Sender::default(),
            wanted: watch::Sender::default(),
            first_wanted: OnceLock::new(),
            told: Mutex::default(),
            held: Arc::default(),
        }
    }

    /// The chain for a request, by its `User-Agent`; `None` when nothing is to be filtered.
    pub fn chain(&self, user_agent: &str, info: &RequestInfo) -> Option<Chain> {
        let chain = self.force.borrow().chain(user_agent, info)?;
        self.want(chain.inputs());
        Some(chain)
    }

    /// What is in force, now and from now on.
    pub fn force(&self) -> watch::Receiver<Arc<Force>> {
        self.force.subscribe()
    }

    /// Puts users' filters in place of those before; they come after the hub's own, in this order.
    pub fn set_users(&self, filters: Vec<Arc<dyn Filter>>) {
        self.users.send_replace(filters);
    }

    /// Follows what a chain that was picked depends on, from now on.
    pub(crate) fn want(&self, inputs: Inputs) {
        let followed = inputs & (Inputs::SERVICES | Inputs::NODE);
        if !self.wanted.borrow().has(followed) {
            self.first_wanted.get_or_init(Instant::now);
            self.wanted
                .send_modify(|wanted| *wanted = *wanted | followed);
        }
    }

    /// The chain of a request once what it depends on is known. Just after the start that may take a moment; when it takes too long, the
    /// answer is what it is without (counted), and watches are told when it is known.
    pub(crate) async fn ready(
        &self,
        chain: Chain,
        user_agent: &str,
        info: &RequestInfo,
        metrics: &Metrics,
    ) -> Option<Chain> {
        let inputs = chain.inputs();
        if is_known(chain.context(), inputs) {
            return Some(chain);
        }
        let since = *self.first_wanted.get_or_init(Instant::now);
        let mut force = self.force.subscribe();
        let known = force.wait_for(|force| is_known(&force.context, inputs));
        if !matches!(
            tokio::time::timeout_at(since + READY, known).await,
            Ok(Ok(_))
        ) {
            metrics.filters().unready();
            tracing::warn!(
                path = info.path,
                "served as it is: the services, or the nodes of the pool, are not known yet"
            );
        }
        self.chain(user_agent, info)
    }

    /// Remembers what a client was shown by.
    pub(crate) fn told(&self, audience: u64, force: &Arc<Force>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|(who, _)| *who != audience);
        if told.len() >= MOST_TOLD {
            told.pop_front();
        }
        told.push_back((audience, force.clone()));
    }

    /// What a client was shown by, for a watch that from now on knows better; `None` when nobody remembers.
    pub(crate) fn take_told(&self, audience: u64) -> Option<Arc<Force>> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let known = told.iter().position(|(who, _)| *who == audience)?;
        told.remove(known).map(|(_, force)| force)
    }

    /// Bytes of answers that are held for filters.
    pub(crate) fn held(&self) -> Arc<AtomicUsize> {
        self.held.clone()
    }
}

/// Whether what is asked for is known, as far as it can be expected to be.
fn is_known(context: &Context, inputs: Inputs) -> bool {
    let pool = context.pool.is_empty() || context.membership.nodes.is_some();
    let services = context.topologies.is_some();
    (pool || !inputs.any_of(Inputs::POOL)) && (services || !inputs.any_of(Inputs::SERVICES))
}

fn selection(config: &Config, settings: &Settings) -> Selection {
    Selection {
        enabled: config.filters,
        disabled: config.disabled_filters.clone(),
        added: settings.filters.clone(),
    }
}

fn context(config: &Config, settings: &Settings) -> Context {
    let dummy = config.dummy.as_ref().map(|dummy| dummy.address);
    let known = Context::of_node(&config.node_name);
    Context {
        pool: settings.pool.clone(),
        hub_host: dummy.unwrap_or(config.bind_proxy),
        hub_port: config
            .secure_proxy
            .map(|address| address.port())
            .filter(|port| *port != 0)
            .unwrap_or(known.hub_port),
        mode: config.working_mode,
        ..known
    }
}

/// Keeps the hub's filters true until it shuts down.
pub(crate) async fn keep(hub: Arc<Hub>, mut members: watch::Receiver<Membership>) {
    let filters = &hub.filters;
    let mut settings = hub.settings.clone();
    let (mut users, mut wanted) = (filters.users.subscribe(), filters.wanted.subscribe());
    let mut services: Option<watch::Receiver<Option<Arc<Topologies>>>> = None;
    let mut node: Option<watch::Receiver<Option<follow::Known<Labels>>>> = None;
    loop {
        let asked = *wanted.borrow_and_update();
        if services.is_none() && asked.any_of(Inputs::SERVICES) {
            services = Some(follow::follow_as(&hub, "/api/v1/services", "", topology));
        }
        if node.is_none() && asked.any_of(Inputs::NODE) {
            let selector = format!("fieldSelector=metadata.name%3D{}", hub.node_name);
            node = Some(follow::follow_as(&hub, "/api/v1/nodes", &selector, labels));
        }
        let force = {
            let settings = settings.borrow_and_update();
            let mut context = context(&hub.config, &settings);
            let of_pool = members.borrow_and_update();
            // A pool is known by its name a moment before its nodes are.
            if of_pool.pool.as_deref() == Some(settings.pool.as_str()) {
                context.membership = of_pool.clone();
            }
            if let Some(services) = &mut services {
                context.topologies.clone_from(&services.borrow_and_update());
            }
            if let Some(node) = &mut node {
                let known = node.borrow_and_update();
                let labels = known.as_ref().and_then(|nodes| nodes.values().next());
                context.node_labels = labels.cloned().unwrap_or_default().into();
            }
            let selection = selection(&hub.config, &settings);
            Force::of(
                &filters.built_in,
                &users.borrow_and_update(),
                &selection,
                context,
            )
        };
        filters.force.send_if_modified(|known| {
            let changed = **known != force;
            if changed {
                *known = Arc::new(force);
            }
            changed
        });
        let going_on = tokio::select! {
            changed = settings.changed() => changed,
            changed = members.changed() => changed,
            changed = users.changed() => changed,
            changed = wanted.changed() => changed,
            changed = changed(services.as_mut()) => changed,
            changed = changed(node.as_mut()) => changed,
            () = hub.shutdown.cancelled() => return,
        };
        if going_on.is_err() {
            // What is followed ends with the hub.
            return;
        }
    }
}

async fn changed<T>(known: Option<&mut watch::Receiver<T>>) -> Result<(), watch::error::RecvError> {
    match known {
        Some(known) => known.changed().await,
        None => std::future::pending().await,
    }
}

pub(crate) fn topology(service: Object) -> Option<Box<str>> {
    // Most services have none: they need not be taken apart.
    memchr::memmem::find(&service.bytes, TOPOLOGY_KEYS.as_bytes())?;
    let meta = service.meta().ok()?;
    let keys = value_of(&meta.annotations, TOPOLOGY_KEYS)?;
    (!keys.is_empty() && keys.len() <= LONGEST_TOPOLOGY).then(|| keys.into())
}

fn labels(node: Object) -> Option<Labels> {
    Some(node.meta().ok()?.labels.into_iter().collect())
}
