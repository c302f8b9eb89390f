//! The lab of all cases: three nodes, nine pods that stay, and the objects of the case that is on.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use chaos_tests::pod::PodSpec;
use chaos_tests::{Lab, LabOptions, Pod};
use kubeapi::Patch;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::case::Step;
use crate::ledger::{Ledger, Token};
use crate::party::{Batch, Party, Question};
use crate::probe::{Expected, Probe, WORLD, What};
use crate::world::{Key, Objects, addresses};

/// For a mesh to be complete on a busy machine.
const MESH: Duration = Duration::from_secs(60);

/// Addresses of the host outside the cluster that pods ask besides its own ones: those of verdicts by hand.
const STRANGERS: [&str; 4] = ["203.0.113.7", "198.51.100.1", "2001:db8::7", "2001:db8:1::7"];

/// [`STRANGERS`].
pub(crate) fn strangers() -> Vec<IpAddr> {
    STRANGERS.iter().map(|text| text.parse().expect("an address")).collect()
}

/// How long a pass takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Silence after the last packet that is taken for a denial.
    quiet: Duration,
    /// For answers that have to come.
    answers: Duration,
    /// When what was not answered is asked again, for packets that a busy machine has lost.
    again: &'static [Duration],
}

impl Patience {
    /// To find out whether things have settled.
    pub(crate) const LOOK: Self =
        Self { quiet: Duration::from_millis(60), answers: Duration::from_millis(250), again: &[] };
    /// To say that they are so.
    pub(crate) const HOLD: Self = Self {
        quiet: Duration::from_millis(250),
        answers: Duration::from_millis(4000),
        again: &[Duration::from_millis(800), Duration::from_millis(2000)],
    };
    /// Everything is allowed: there is no silence to wait for.
    const OPEN: Self = Self { quiet: Duration::ZERO, answers: Duration::from_millis(250), again: &[] };
}

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Who has answered.
    pub(crate) answered: Option<String>,
    /// Somebody has got it.
    pub(crate) arrived: bool,
}

impl Seen {
    /// Is it what was expected?
    pub(crate) fn is(&self, expected: &Expected, probe: &Probe) -> bool {
        if !expected.allowed {
            return self.answered.is_none() && !self.arrived;
        }
        match probe.what {
            // Told by its address.
            What::Icmp => self.answered.as_deref() == Some(&*probe.to.to_string()),
            What::Tcp(_) | What::Udp(_) | What::Sctp(_) | What::Other(_) => {
                self.answered.as_deref() == Some(&*expected.by)
            }
        }
    }
}

/// The lab. Parties end before the pods that they are in.
#[derive(Debug)]
pub(crate) struct Stage {
    parties: BTreeMap<String, Party>,
    pods: BTreeMap<Key, Pod>,
    pub(crate) objects: Objects,
    listen: Vec<What>,
    ledger: Arc<Ledger>,
    /// What must not arrive any more.
    forbidden: Vec<(Token, Probe)>,
    /// Probes that had to be sent again in a pass that holds.
    pub(crate) repeated: usize,
    pub(crate) lab: Lab,
}

impl Stage {
    /// Makes the world of [`Objects::base`], in which everybody listens on the ports of `listen`.
    pub(crate) fn new(name: &str, listen: Vec<What>) -> Result<Self> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let more = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
        // Every party listens on every port at each of its addresses.
        rustix::process::setrlimit(rustix::process::Resource::Nofile, more)?;
        let lab = Lab::up(LabOptions::new(netlab::unique_name(name)))?;
        lab.await_settled(MESH)?;
        let mut stage = Self {
            parties: BTreeMap::new(),
            pods: BTreeMap::new(),
            objects: Objects::default(),
            listen,
            ledger: Arc::default(),
            forbidden: Vec::new(),
            repeated: 0,
            lab,
        };
        let base = Objects::base();
        for kind in ["Namespace", "Node", "Pod"] {
            for (key, object) in base.0.iter().filter(|(key, _)| key.kind == kind) {
                stage.write(key, object)?;
            }
        }
        for node in &stage.lab.nodes {
            let ips = addresses(&base.0[&Key::read(&format!("Node {}", node.name))?]);
            let party = Party::new(&node.namespace, &node.name, &ips, &stage.listen, &stage.ledger)?;
            stage.parties.insert(node.name.clone(), party);
        }
        stage.lab.world.netlink(async |nl| {
            for ip in strangers() {
                // On the switch, where the nodes look for an address of its prefix.
                nl.addr_add("eth0", ip.into()).await?;
            }
            Ok(())
        })?;
        let world = Party::new(&stage.lab.world, WORLD, &strangers(), &stage.listen, &stage.ledger)?;
        stage.parties.insert(WORLD.to_owned(), world);
        Ok(stage)
    }

    // ---------------------------------------------------------------- objects

    /// Back to the base.
    pub(crate) fn reset(&mut self) -> Result<()> {
        let base = Objects::base();
        let there = self.objects.0.keys().chain(self.pods.keys());
        let mut gone: Vec<Key> = there.filter(|key| !base.0.contains_key(*key)).cloned().collect();
        // Pods before their namespaces.
        gone.sort_by_key(|key| {
            let order = ["Pod", "Namespace"].iter().position(|kind| key.kind == *kind);
            (order, key.clone())
        });
        gone.dedup();
        for key in gone {
            self.delete(&key)?;
        }
        for (key, object) in &base.0 {
            self.write(key, object)?;
        }
        Ok(())
    }

    /// Does what the step says.
    pub(crate) fn take(&mut self, step: &Step) -> Result<()> {
        let mut target = self.objects.clone();
        for object in &step.objects {
            target.apply(object);
            let key = Key::of(object);
            let wanted = target.0[&key].clone();
            self.write(&key, &wanted).with_context(|| key.to_string())?;
        }
        for pod in &step.terminate {
            let (namespace, name) = pod.split_once('/').with_context(|| format!("{pod:?} is no pod"))?;
            self.lab.api().store().delete("pods", Some(namespace), name).map_err(|e| anyhow!("{e}"))?;
        }
        for text in &step.delete {
            let key = Key::read(text)?;
            self.delete(&key).with_context(|| key.to_string())?;
        }
        Ok(())
    }

    fn write(&mut self, key: &Key, wanted: &Value) -> Result<()> {
        let store = self.lab.api().store();
        let refused = |error: kubeapi::ApiError| anyhow!("{error}");
        let known = self.objects.0.get(key);
        if known == Some(wanted) {
            return Ok(());
        }
        match (&*key.kind, known) {
            // The lab made it, but for its labels.
            ("Node", None) => self.relabel(key, &json!({}), wanted)?,
            ("Namespace" | "Node" | "Pod", Some(known)) => {
                let but_metadata = |object: &Value| {
                    let mut object = object.clone();
                    object.as_object_mut().map(|fields| fields.remove("metadata"));
                    object
                };
                ensure!(
                    but_metadata(known) == but_metadata(wanted),
                    "only metadata can be changed in the lab"
                );
                self.relabel(key, known, wanted)?;
            }
            ("Pod", None) if wanted["spec"]["hostNetwork"] == true => {
                let _: Value = store.create(wanted).map_err(refused)?;
                let status = Patch::Merge(json!({"status": wanted["status"]}));
                store.patch_status("pods", key.namespace(), &key.name, &status).map_err(refused)?;
            }
            ("Pod", None) => self.connect(key, wanted)?,
            (_, None) => drop(store.create::<Value>(wanted).map_err(refused)?),
            (_, Some(_)) => {
                // The API wants to know which version is meant.
                let resource = key.resource()?;
                let now: Value = store.get(resource, key.namespace(), &key.name).map_err(refused)?;
                let mut next = wanted.clone();
                next["metadata"]["resourceVersion"] = now["metadata"]["resourceVersion"].clone();
                let _: Value = store.update(&next).map_err(refused)?;
            }
        }
        self.objects.0.insert(key.clone(), wanted.clone());
        Ok(())
    }

    /// Makes labels and annotations of an object those of `wanted`.
    fn relabel(&self, key: &Key, known: &Value, wanted: &Value) -> Result<()> {
        let mut metadata = json!({});
        for field in ["labels", "annotations"] {
            let [before, after] = [known, wanted].map(|o| o["metadata"][field].as_object().cloned());
            let mut change: serde_json::Map<String, Value> =
                before.into_iter().flatten().map(|(label, _)| (label, Value::Null)).collect();
            change.extend(after.into_iter().flatten());
            metadata[field] = change.into();
        }
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        let store = self.lab.api().store();
        store.patch(key.resource()?, key.namespace(), &key.name, &patch).map_err(|e| anyhow!("{e}"))?;
        Ok(())
    }

    fn connect(&mut self, key: &Key, object: &Value) -> Result<()> {
        let ips = addresses(object);
        let node =
            object["spec"]["nodeName"].as_str().and_then(|name| name.strip_prefix("node-")?.parse().ok());
        let mut spec = PodSpec::new(node.context("a pod of no node")?, &key.name).project(&key.namespace);
        spec.labels = serde_json::from_value(object["metadata"]["labels"].clone()).unwrap_or_default();
        spec.ports = object["spec"]["containers"][0]["ports"].as_array().cloned().unwrap_or_default();
        let pod = self.lab.add_pod_of(&spec.runtime_config(json!({ "ips": ips })))?;
        let pod = self.pods.entry(key.clone()).insert_entry(pod).into_mut();
        ensure!(pod.ips == ips, "it has {:?} instead of {ips:?}", pod.ips);
        let name = format!("{}/{}", key.namespace, key.name);
        let party = Party::new(&pod.namespace, &name, &ips, &self.listen, &self.ledger)?;
        self.parties.insert(name, party);
        Ok(())
    }

    fn delete(&mut self, key: &Key) -> Result<()> {
        match self.pods.remove(key) {
            Some(pod) => {
                self.parties.remove(&format!("{}/{}", key.namespace, key.name));
                pod.remove(&self.lab)?;
            }
            None => {
                let store = self.lab.api().store();
                store.delete_now(key.resource()?, key.namespace(), &key.name).map_err(|e| anyhow!("{e}"))?;
            }
        }
        self.objects.0.remove(key);
        Ok(())
    }

    // ----------------------------------------------------------------- asking

    /// Asks everything at once.
    pub(crate) fn pass(&mut self, questions: &[(Probe, Expected)], patience: Patience) -> Result<Vec<Seen>> {
        let places = self.objects.parties();
        let tokens = self.ledger.tokens(questions.len());
        let mut batches: BTreeMap<String, Vec<Question>> = BTreeMap::new();
        for ((probe, expected), token) in questions.iter().zip(&tokens) {
            let from = places.get(&probe.source).with_context(|| format!("nobody is at {}", probe.source))?;
            let service = expected.flow.destination != probe.to;
            batches.entry(from.name.clone()).or_default().push(Question {
                token: *token,
                probe: *probe,
                service,
            });
        }
        let allowed = questions.iter().zip(&tokens).filter(|((_, e), _)| e.allowed).map(|(_, token)| *token);
        let (close, open) = watch::channel(());
        let begun = Instant::now();
        self.ledger.await_answers(allowed, batches.len());
        for (name, questions) in &batches {
            self.party(name)?.ask(Batch { questions: questions.clone(), open: open.clone() });
        }
        let sent = self.ledger.wait_sent();
        for again in patience.again {
            let missing = self.ledger.wait_answers(begun + *again);
            if missing.is_empty() {
                break;
            }
            self.repeated += missing.len();
            for (name, questions) in &batches {
                let questions = questions.iter().filter(|q| missing.contains(&q.token)).copied().collect();
                self.party(name)?.ask(Batch { questions, open: open.clone() });
            }
        }
        self.ledger.wait_answers(begun + patience.answers);
        std::thread::sleep((sent + patience.quiet).saturating_duration_since(Instant::now()));
        drop(close);
        let seen = tokens.iter().map(|token| {
            let (answered, arrived) = self.ledger.look(*token);
            Seen { answered, arrived }
        });
        let seen = seen.collect();
        let denied = questions.iter().zip(&tokens).filter(|((_, expected), _)| !expected.allowed);
        self.forbidden = denied.map(|((probe, _), token)| (*token, *probe)).collect();
        Ok(seen)
    }

    /// What was denied in the last pass and arrived after it.
    pub(crate) fn late(&self) -> Vec<Probe> {
        let arrived = self.forbidden.iter().filter(|(token, _)| self.ledger.look(*token).1);
        arrived.map(|(_, probe)| *probe).collect()
    }

    fn party(&self, name: &str) -> Result<&Party> {
        self.parties.get(name).with_context(|| format!("{name} is not in the lab"))
    }

    /// Everybody reaches everybody: nothing of the last case is in force any more.
    pub(crate) fn is_open(&mut self, questions: &[(Probe, Expected)]) -> Result<(), String> {
        let seen = self.pass(questions, Patience::OPEN).map_err(|error| format!("{error:#}"))?;
        let cut = questions.iter().zip(&seen).find(|((probe, expected), seen)| !seen.is(expected, probe));
        cut.map_or(Ok(()), |((probe, _), seen)| Err(format!("{probe:?}: {seen:?}")))
    }
}
