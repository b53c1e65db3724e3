//! Figures as they are shown: measured, next to their target and their floor.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::super::table::{Column, Table};

/// Durations, kept to three digits.
pub struct Durations {
    nanos: Histogram<u64>,
}

impl Durations {
    pub fn new() -> Self {
        const LONGEST: Duration = Duration::from_secs(600);
        let longest = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
        Self { nanos: Histogram::new_with_bounds(1, longest, 3).expect("the bounds are in order") }
    }

    pub fn add(&mut self, duration: Duration) {
        self.nanos.saturating_record(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    pub fn merge(&mut self, others: &Self) {
        self.nanos.add(&others.nanos).expect("all have the same bounds");
    }

    pub fn count(&self) -> u64 {
        self.nanos.len()
    }

    /// In milliseconds.
    pub fn ms(&self, quantile: f64) -> f64 {
        self.nanos.value_at_quantile(quantile) as f64 / 1e6
    }

    pub fn max_ms(&self) -> f64 {
        self.nanos.max() as f64 / 1e6
    }
}

#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub enum Target {
    #[serde(rename = "atMost")]
    Most(f64),
    #[serde(rename = "atLeast")]
    Least(f64),
    /// At most so many times the floor.
    #[serde(rename = "atMostRatio")]
    Floors(f64),
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figure {
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// What the bare operations below it take, in the same unit and the same run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// None where there is no target.
    pub met: Option<bool>,
}

impl Figure {
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, target: None, floor: None, ratio: None, met: None }
    }

    #[must_use]
    pub fn floor(mut self, floor: f64) -> Self {
        self.floor = Some(floor);
        self.ratio = Some(self.value / floor);
        self.judge()
    }

    #[must_use]
    pub fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self.judge()
    }

    fn judge(mut self) -> Self {
        self.met = self.target.map(|target| match target {
            Target::Most(most) => self.value <= most,
            Target::Least(least) => self.value >= least,
            Target::Floors(most) => self.ratio.is_some_and(|ratio| ratio <= most),
        });
        self
    }
}

/// What the figures were taken on.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    pub cores: usize,
    pub memory_mb: u64,
    pub kernel: String,
    pub nats_server: String,
    /// False where the program was built without optimisation: then the figures say nothing.
    pub optimised: bool,
}

/// How durations are spread.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Distribution {
    pub name: String,
    pub unit: &'static str,
    pub count: u64,
    pub quantiles: Vec<Quantile>,
}

/// So much of all is at most this.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Quantile {
    pub quantile: f64,
    pub value: f64,
}

/// With their names; the last is the longest.
const QUANTILES: [(f64, &str); 8] = [
    (0.5, "P50"),
    (0.75, "P75"),
    (0.9, "P90"),
    (0.95, "P95"),
    (0.99, "P99"),
    (0.999, "P99.9"),
    (0.9999, "P99.99"),
    (1.0, "MAX"),
];

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub bench: String,
    pub machine: Machine,
    pub figures: Vec<Figure>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub distributions: Vec<Distribution>,
}

impl Report {
    pub fn all_met(&self) -> bool {
        self.figures.iter().all(|figure| figure.met != Some(false))
    }

    /// Shows how these are spread, if there are any.
    #[must_use]
    pub fn spread(mut self, name: &str, durations: &Durations) -> Self {
        if durations.count() > 0 {
            let quantiles =
                QUANTILES.iter().map(|(quantile, _)| Quantile { quantile: *quantile, value: durations.ms(*quantile) });
            let (name, quantiles) = (name.to_owned(), quantiles.collect());
            self.distributions.push(Distribution { name, unit: "ms", count: durations.count(), quantiles });
        }
        self
    }

    fn spreads(&self, width: usize) -> String {
        if self.distributions.is_empty() {
            return String::new();
        }
        let headings = QUANTILES.iter().map(|(_, heading)| Column::Number(heading));
        let columns: Vec<_> = [Column::Text("SPREAD"), Column::Number("COUNT")].into_iter().chain(headings).collect();
        let mut table = Table::new(&columns, width);
        for Distribution { name, unit, count, quantiles } in &self.distributions {
            let values = quantiles.iter().map(|quantile| number(quantile.value));
            table.row([format!("{name}, {unit}"), number(*count as f64)].into_iter().chain(values));
        }
        format!("\n{}", table.render())
    }

    pub fn table(&self, width: usize) -> String {
        let mut table = Table::new(
            &[
                Column::Text("FIGURE"),
                Column::Number("MEASURED"),
                Column::Number("TARGET"),
                Column::Number("FLOOR"),
                Column::Number("RATIO"),
                Column::Text("MET"),
            ],
            width,
        );
        for figure in &self.figures {
            let dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
            let target = figure.target.map(|target| match target {
                Target::Most(most) => format!("≤ {} {}", number(most), figure.unit),
                Target::Least(least) => format!("≥ {} {}", number(least), figure.unit),
                Target::Floors(most) => format!("≤ {} × floor", number(most)),
            });
            table.row([
                figure.name.clone(),
                format!("{} {}", number(figure.value), figure.unit),
                dash(target),
                dash(figure.floor.map(|floor| format!("{} {}", number(floor), figure.unit))),
                dash(figure.ratio.map(|ratio| format!("{ratio:.2}"))),
                dash(figure.met.map(|met| if met { "yes" } else { "NO" }.into())),
            ]);
        }
        let Machine { cores, memory_mb, kernel, nats_server, optimised } = &self.machine;
        let warning = if *optimised { "" } else { "\nbuilt without optimisation: these figures say nothing" };
        format!(
            "{}{}\n{cores} cores, {memory_mb} MB, kernel {kernel}, nats-server {nats_server}{warning}\n",
            table.render(),
            self.spreads(width)
        )
    }
}

/// Three digits, or all before the point, in groups.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        small if small == 0.0 || small >= 100.0 => 0,
        small if small >= 10.0 => 1,
        small if small >= 0.1 => 2,
        _ => 4,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let groups: Vec<_> = whole.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    let whole = format!("{sign}{}", groups.join(","));
    match rest.map(|rest| rest.trim_end_matches('0')).filter(|rest| !rest.is_empty()) {
        Some(rest) => format!("{whole}.{rest}"),
        None => whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_judged_by_its_target_whatever_is_said_first() {
        let met = |figure: Figure| figure.met;
        assert_eq!(met(Figure::new("a", 3.0, "ms")), None);
        assert_eq!(met(Figure::new("a", 3.0, "ms").target(Target::Most(2.9))), Some(false));
        assert_eq!(met(Figure::new("a", 3.0, "/s").target(Target::Least(2.9))), Some(true));
        assert_eq!(met(Figure::new("a", 3.0, "ms").target(Target::Floors(2.0)).floor(1.5)), Some(true));
        assert_eq!(met(Figure::new("a", 3.1, "ms").floor(1.5).target(Target::Floors(2.0))), Some(false));
        assert_eq!(met(Figure::new("a", 3.1, "ms").target(Target::Floors(2.0))), Some(false));
    }

    #[test]
    fn numbers_have_the_digits_that_mean_something() {
        let shown = [0.0, 0.0123, 0.5, 1.25, 24.04, 99_999.6, 1_000_000.0, -1234.0].map(number);
        assert_eq!(shown, ["0", "0.0123", "0.5", "1.25", "24", "100,000", "1,000,000", "-1,234"]);
    }

    #[test]
    fn quantiles_are_in_milliseconds() {
        let mut durations = Durations::new();
        (1..=100).for_each(|ms| durations.add(Duration::from_millis(ms)));
        assert!((durations.ms(0.5) - 50.0).abs() < 0.1 && (durations.max_ms() - 100.0).abs() < 0.2);
        assert_eq!(durations.count(), 100);
    }
}
