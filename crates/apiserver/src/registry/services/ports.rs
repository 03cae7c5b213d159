//! Node ports: those of services, and those under which load balancers ask nodes for their health.

use super::Kind;
use serde_json::{Value, json};
use std::{collections::HashSet, ops::RangeInclusive};
use yurt_wire::status::Cause;

/// As kube-apiserver's default.
const NODE_PORTS: RangeInclusive<u64> = 30000..=32767;

fn ports(service: &Value) -> impl Iterator<Item = &Value> {
    service["spec"]["ports"].as_array().into_iter().flatten()
}

/// The numbers a service holds.
fn held(service: &Value) -> impl Iterator<Item = u64> {
    let numbers = ports(service).map(|port| &port["nodePort"]);
    let all = numbers.chain([&service["spec"]["healthCheckNodePort"]]);
    all.filter_map(Value::as_u64).filter(|number| *number > 0)
}

fn invalid(field: String, value: u64, why: &str) -> Vec<Cause> {
    vec![Cause {
        reason: "FieldValueInvalid".into(),
        message: format!("Invalid value: {value}: {why}"),
        field,
    }]
}

/// What makes a port the same port before and after a change.
fn identity(port: &Value) -> Value {
    json!([port["port"], protocol(port)])
}

fn protocol(port: &Value) -> &str {
    port["protocol"].as_str().unwrap_or("TCP")
}

/// The numbers in use, and how new ones are found.
struct Numbers {
    used: HashSet<u64>,
    /// What this service asks for itself.
    wished: HashSet<u64>,
}

impl Numbers {
    /// Takes a number that is asked for.
    fn take(
        &mut self,
        number: u64,
        had: bool,
        field: impl Fn() -> String,
    ) -> Result<u64, Vec<Cause>> {
        if !NODE_PORTS.contains(&number) && !had {
            let why = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                NODE_PORTS.start(),
                NODE_PORTS.end()
            );
            return Err(invalid(field(), number, &why));
        }
        if !self.used.insert(number) {
            return Err(invalid(
                field(),
                number,
                "provided port is already allocated",
            ));
        }
        Ok(number)
    }

    /// Finds a free number.
    fn find(&mut self, field: impl Fn() -> String) -> Result<u64, Vec<Cause>> {
        let size = NODE_PORTS.end() - NODE_PORTS.start() + 1;
        let start = fastrand::u64(..size);
        let free = (0..size)
            .map(|n| NODE_PORTS.start() + (start + n) % size)
            .find(|n| !self.used.contains(n) && !self.wished.contains(n));
        match free {
            Some(free) => {
                self.used.insert(free);
                Ok(free)
            }
            None => Err(invalid(
                field(),
                0,
                "failed to allocate a nodePort: range is full",
            )),
        }
    }
}

/// Gives a service the node ports that its type has, keeps those it had, and takes those it has no use for any more.
pub(super) fn node_ports(
    others: &[Value],
    live: Option<&Value>,
    service: &mut Value,
) -> Result<(), Vec<Cause>> {
    let kind = Kind::of(service);
    let mut numbers = Numbers {
        used: others.iter().flat_map(held).collect(),
        wished: held(service).collect(),
    };
    let before: Vec<(Value, u64)> = live
        .into_iter()
        .flat_map(ports)
        .filter_map(|port| Some((identity(port), port["nodePort"].as_u64()?)))
        .collect();
    let had = |number: u64| live.into_iter().flat_map(held).any(|held| held == number);
    // Ports of the same number but other protocols share a node port: number, protocol, node port.
    let mut given: Vec<(Value, String, u64)> = Vec::new();
    if let Some(Value::Array(list)) = service.pointer_mut("/spec/ports") {
        for (i, port) in list.iter_mut().enumerate() {
            let field = || format!("spec.ports[{i}].nodePort");
            let asked = port["nodePort"].as_u64().filter(|number| *number > 0);
            if !kind.node_ports && asked.is_none_or(had) {
                // A service that no longer has node ports gives back those it was given; a load balancer may keep them.
                if !(kind.load_balancer && asked.is_some())
                    && let Some(port) = port.as_object_mut()
                {
                    port.remove("nodePort");
                }
                continue;
            }
            let kept = before.iter().find(|(known, _)| *known == identity(port));
            let wanted = asked.or(kept.map(|(_, number)| *number));
            let sibling = given.iter().find(|(number, other, node_port)| {
                other != protocol(port)
                    && wanted.map_or(*number == port["port"], |wanted| wanted == *node_port)
            });
            let number = match (wanted, sibling) {
                (_, Some((_, _, node_port))) => *node_port,
                (Some(wanted), None) => numbers.take(wanted, had(wanted), field)?,
                (None, None) => numbers.find(field)?,
            };
            given.push((port["port"].clone(), protocol(port).to_owned(), number));
            port["nodePort"] = number.into();
        }
    }
    if kind.health_check {
        let field = || "spec.healthCheckNodePort".to_owned();
        let of = |service: &Value| {
            service["spec"]["healthCheckNodePort"]
                .as_u64()
                .filter(|number| *number > 0)
        };
        let number = match of(service).or(live.and_then(of)) {
            Some(number) => numbers.take(number, had(number), field)?,
            None => numbers.find(field)?,
        };
        service["spec"]["healthCheckNodePort"] = number.into();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(kind: &str, ports: Value) -> Value {
        json!({"spec": {"type": kind, "ports": ports}})
    }

    fn number(service: &Value, i: usize) -> u64 {
        service["spec"]["ports"][i]["nodePort"]
            .as_u64()
            .unwrap_or_default()
    }

    #[test]
    fn numbers_must_be_in_the_range_and_free() -> Result<(), Vec<Cause>> {
        let ask = |others: &[Value], number: u64| {
            let mut service = service("NodePort", json!([{"port": 80, "nodePort": number}]));
            node_ports(others, None, &mut service).map(|()| service)
        };
        let message = |outcome: Result<Value, Vec<Cause>>| {
            outcome.map_err(|causes| causes[0].message.clone())
        };
        assert_eq!(
            message(ask(&[], 80)),
            Err("Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767".into())
        );
        let first = ask(&[], 30080)?;
        assert_eq!(
            message(ask(&[first], 30080)),
            Err("Invalid value: 30080: provided port is already allocated".into())
        );
        Ok(())
    }

    #[test]
    fn ports_that_differ_by_protocol_share_a_number() -> Result<(), Vec<Cause>> {
        let mut dns = service(
            "NodePort",
            json!([{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}, {"port": 54}]),
        );
        node_ports(&[], None, &mut dns)?;
        assert_eq!(number(&dns, 0), number(&dns, 1));
        assert_ne!(number(&dns, 0), number(&dns, 2));
        let live = dns.clone();
        node_ports(&[], Some(&live), &mut dns)?;
        assert_eq!(dns, live, "kept");
        let mut same = service(
            "NodePort",
            json!([{"port": 1, "nodePort": 30001}, {"port": 2, "nodePort": 30001}]),
        );
        assert!(node_ports(&[], None, &mut same).is_err());
        Ok(())
    }

    #[test]
    fn local_load_balancers_have_a_port_for_health_checks() -> Result<(), Vec<Cause>> {
        let mut balancer = service("LoadBalancer", json!([{"port": 80}]));
        balancer["spec"]["externalTrafficPolicy"] = "Local".into();
        node_ports(&[], None, &mut balancer)?;
        let health = balancer["spec"]["healthCheckNodePort"]
            .as_u64()
            .unwrap_or_default();
        assert!(NODE_PORTS.contains(&health));
        assert_ne!(health, number(&balancer, 0));
        let mut other = service("NodePort", json!([{"port": 80, "nodePort": health}]));
        assert!(
            node_ports(&[balancer.clone()], None, &mut other).is_err(),
            "it is taken"
        );
        let live = balancer.clone();
        node_ports(&[], Some(&live), &mut balancer)?;
        assert_eq!(balancer, live);
        Ok(())
    }

    #[test]
    fn load_balancers_may_do_without() -> Result<(), Vec<Cause>> {
        let mut balancer = service(
            "LoadBalancer",
            json!([{"port": 80}, {"port": 81, "nodePort": 30081}]),
        );
        balancer["spec"]["allocateLoadBalancerNodePorts"] = false.into();
        node_ports(&[], None, &mut balancer)?;
        assert_eq!(
            (number(&balancer, 0), number(&balancer, 1)),
            (0, 30081),
            "what is asked for is given"
        );
        Ok(())
    }
}
