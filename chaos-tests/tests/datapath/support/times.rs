//! Durations of many rounds, as people read them.

use std::fmt;
use std::time::Duration;

/// Sorted durations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        let at = self.0.partition_point(|other| *other <= time);
        self.0.insert(at, time);
    }

    /// The value that this share of all is not above (nearest rank); zero of none.
    pub(crate) fn quantile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1) - 1;
        self.0.get(rank).copied().unwrap_or_default()
    }

    /// How many are longer.
    pub(crate) fn above(&self, limit: Duration) -> usize {
        self.0.len() - self.0.partition_point(|time| *time <= limit)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        let mut all: Vec<Duration> = times.into_iter().collect();
        all.sort();
        Self(all)
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [half, most, all] = [50, 99, 100].map(|percent| self.quantile(percent));
        write!(f, "n {}, p50 {half:.2?}, p99 {most:.2?}, longest {all:.2?}", self.len())
    }
}

#[test]
fn a_quantile_is_the_value_of_its_rank() {
    let times: Times = (1..=100).map(Duration::from_millis).collect();
    assert_eq!([1, 50, 99, 100].map(|q| times.quantile(q).as_millis()), [1, 50, 99, 100]);
    assert_eq!(Times::default().quantile(99), Duration::ZERO);
    let mut three = Times::default();
    [3, 1, 2].map(Duration::from_secs).into_iter().for_each(|time| three.push(time));
    assert_eq!([50, 99].map(|q| three.quantile(q).as_secs()), [2, 3]);
}
