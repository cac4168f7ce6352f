//! Sensors arranged by what stands in for what: a wall meter covers the whole machine; where it has no reading its parts
//! are added up; where a part has no reading a model stands in; and where there is no model the time is unknown.

use std::collections::BTreeMap;

use super::{counter::Step, declared::Declared, load::Load};
use crate::grade::Grade;

/// A sensor of energy.
pub trait Sensor: Send {
    /// Looks at the sensor at the time `now_s` (seconds of a monotonic clock).
    fn poll(&mut self, now_s: f64) -> Step;
}

impl<F: FnMut(f64) -> Step + Send> Sensor for F {
    fn poll(&mut self, now_s: f64) -> Step {
        self(now_s)
    }
}

/// What a stream of joules is.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Of the machine: `machine`, `cpu 0`, `memory`, `gpu 0`.
    pub component: String,
    /// How it is read, for people.
    pub how: String,
    /// How far it can be trusted.
    pub grade: Grade,
    /// Standard uncertainty of ln(joules), of the instrument.
    pub relative: f64,
    /// Its counter may lag by this much, in seconds: a window of `T` seconds errs by up to `2τ/T`.
    pub granularity_s: f64,
    /// Power when idle and fully loaded in watts, of a model.
    pub model_w: Option<(f64, f64)>,
}

impl Source {
    /// A source with the uncertainty usual for its grade.
    pub fn new(component: impl Into<String>, how: impl Into<String>, grade: Grade, granularity_s: f64) -> Self {
        let relative = grade.default_relative();
        Self { component: component.into(), how: how.into(), grade, relative, granularity_s, model_w: None }
    }
}

/// How a source fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is read.
    Reading,
    /// It is not, and why.
    Silent(String),
}

/// Joules and unknown seconds by source, since the meter began.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Amounts(pub BTreeMap<usize, Amount>);

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Amount {
    pub joules: f64,
    pub unknown_s: f64,
}

impl Amounts {
    pub fn add(&mut self, other: &Self, sign: f64) {
        for (id, amount) in &other.0 {
            let mine = self.0.entry(*id).or_default();
            mine.joules += sign * amount.joules;
            mine.unknown_s += sign * amount.unknown_s;
        }
    }

    pub fn joules(&self) -> f64 {
        self.0.values().map(|a| a.joules).sum()
    }
}

pub(super) enum Node {
    Sensor(Box<SensorNode>),
    Sum(Vec<Node>),
    /// A model of power under load; `share` of it belongs here.
    Declared {
        id: usize,
        model: Declared,
        share: f64,
        joules: f64,
        last: Option<(f64, Option<f64>)>,
    },
    /// Nothing is known of this part.
    Unknown {
        id: usize,
        since_s: Option<f64>,
        now_s: f64,
    },
}

pub(super) struct SensorNode {
    id: usize,
    sensor: Box<dyn Sensor>,
    /// Whether it covers all that `otherwise` covers, so that it cannot read less.
    contains: bool,
    otherwise: Node,
    committed: Amounts,
    /// What `otherwise` stood at, at the last `Known` or `Lost`.
    mark: Amounts,
    pending: bool,
    /// Of this sensor and of what it contains, over the same time.
    own_j: f64,
    inner_j: f64,
    known_s: f64,
    last_s: Option<f64>,
    dismissed: bool,
}

/// After this much time a sensor that reads less than its own parts is dismissed, in seconds.
const TRIAL_S: f64 = 2.0;

/// The list of sources grows as the tree is built; a node knows its place in it.
#[derive(Default)]
pub(super) struct Sources {
    pub list: Vec<(Source, State)>,
}

impl Sources {
    fn add(&mut self, source: Source) -> usize {
        self.list.push((source, State::Silent("not read yet".into())));
        self.list.len() - 1
    }

    pub fn sensor(&mut self, source: Source, sensor: impl Sensor + 'static, otherwise: Node) -> Node {
        self.boxed(source, Box::new(sensor), false, otherwise)
    }

    pub fn container(&mut self, source: Source, sensor: impl Sensor + 'static, otherwise: Node) -> Node {
        self.boxed(source, Box::new(sensor), true, otherwise)
    }

    fn boxed(&mut self, source: Source, sensor: Box<dyn Sensor>, contains: bool, otherwise: Node) -> Node {
        Node::Sensor(Box::new(SensorNode {
            id: self.add(source),
            sensor,
            contains,
            otherwise,
            committed: Amounts::default(),
            mark: Amounts::default(),
            pending: true,
            own_j: 0.0,
            inner_j: 0.0,
            known_s: 0.0,
            last_s: None,
            dismissed: false,
        }))
    }

    pub fn declared(&mut self, component: &str, model: &Declared, share: f64) -> Node {
        let mut source = Source::new(component, &model.how, model.grade, model.granularity_s);
        source.relative = model.relative;
        source.model_w = Some((model.idle_w * share, model.full_w * share));
        Node::Declared { id: self.add(source), model: model.clone(), share, joules: 0.0, last: None }
    }

    pub fn unknown(&mut self, component: &str) -> Node {
        let id = self.add(Source::new(component, "nothing reads it", Grade::E, 0.0));
        Node::Unknown { id, since_s: None, now_s: 0.0 }
    }
}

impl Node {
    /// Looks at every sensor.
    pub fn poll(&mut self, now_s: f64, load: &Load, sources: &mut Sources) {
        match self {
            Self::Sum(nodes) => nodes.iter_mut().for_each(|n| n.poll(now_s, load, sources)),
            Self::Declared { id, model, share, joules, last } => {
                if let Some((then_s, busy_s)) = *last {
                    *joules += *share * model.joules(now_s - then_s, load.busy_since(busy_s), load.cpus);
                }
                *last = Some((now_s, load.busy_s));
                sources.list[*id].1 = State::Reading;
            }
            Self::Unknown { since_s, now_s: now, .. } => {
                since_s.get_or_insert(now_s);
                *now = now_s;
            }
            Self::Sensor(node) => node.poll(now_s, load, sources),
        }
    }

    /// Joules since the meter began, with stand-ins where a reading is still pending.
    pub fn cumulative(&self) -> Amounts {
        match self {
            Self::Sum(nodes) => nodes.iter().fold(Amounts::default(), |mut sum, node| {
                sum.add(&node.cumulative(), 1.0);
                sum
            }),
            Self::Declared { id, joules, .. } => {
                Amounts(BTreeMap::from([(*id, Amount { joules: *joules, unknown_s: 0.0 })]))
            }
            Self::Unknown { id, since_s, now_s } => {
                let unknown_s = now_s - since_s.unwrap_or(*now_s);
                Amounts(BTreeMap::from([(*id, Amount { joules: 0.0, unknown_s })]))
            }
            Self::Sensor(node) => {
                let mut sum = node.committed.clone();
                if node.pending {
                    sum.add(&node.otherwise.cumulative(), 1.0);
                    sum.add(&node.mark, -1.0);
                }
                sum
            }
        }
    }

    /// What the parts of the machine read, where one meter stands for all of them; none otherwise.
    pub fn parts(&self) -> Option<Amounts> {
        match self {
            Self::Sensor(node) if node.contains => node.otherwise.parts().or_else(|| Some(node.otherwise.cumulative())),
            _ => None,
        }
    }
}

impl SensorNode {
    fn poll(&mut self, now_s: f64, load: &Load, sources: &mut Sources) {
        self.otherwise.poll(now_s, load, sources);
        let inner = self.otherwise.cumulative();
        let step = if self.dismissed {
            Step::Lost("dismissed: it read less than the parts that it contains".into())
        } else {
            self.sensor.poll(now_s)
        };
        match step {
            Step::Known(joules) => {
                self.committed.0.entry(self.id).or_default().joules += joules;
                if self.contains {
                    let mut part = inner.clone();
                    part.add(&self.mark, -1.0);
                    let measured = |id: &usize| sources.list[*id].0.grade <= Grade::C;
                    self.inner_j += part.0.iter().filter(|(id, _)| measured(id)).map(|(_, a)| a.joules).sum::<f64>();
                    self.own_j += joules;
                    self.known_s += now_s - self.last_s.unwrap_or(now_s);
                    self.dismissed = self.known_s > TRIAL_S && self.own_j < 0.9 * self.inner_j;
                }
                self.settle(now_s, inner);
                sources.list[self.id].1 = State::Reading;
            }
            Step::Lost(why) => {
                self.committed.add(&inner, 1.0);
                self.committed.add(&self.mark, -1.0);
                self.settle(now_s, inner);
                let first = why == "first reading";
                sources.list[self.id].1 = if first { State::Reading } else { State::Silent(why) };
            }
            Step::Pending(why) => {
                self.pending = true;
                sources.list[self.id].1 = State::Silent(why);
            }
        }
    }

    fn settle(&mut self, now_s: f64, inner: Amounts) {
        self.mark = inner;
        self.pending = false;
        self.last_s = Some(now_s);
    }
}
