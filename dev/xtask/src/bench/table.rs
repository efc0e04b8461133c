//! Figures of all contenders and rounds, and the table they make.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

/// What is measured: one row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Measure {
    /// Its name in the table.
    pub(crate) name: &'static str,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// What is wanted of the relay and the worker together.
    pub(crate) goal: Goal,
}

/// What is wanted of a measure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Goal {
    /// Nothing in particular.
    Any,
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// At most this many times the comparison's.
    RatioAtMost(f64),
    /// At least this many times the comparison's.
    RatioAtLeast(f64),
}

impl Goal {
    fn cell(self, ours: Option<f64>, ratio: Option<f64>) -> String {
        let judged = |met: Option<bool>| match met {
            Some(true) => ", met",
            Some(false) => ", **missed**",
            None if ours.is_some() => ", cannot be told",
            None => "",
        };
        match self {
            Self::Any => "–".to_owned(),
            Self::AtMost(goal) => format!("≤ {goal}{}", judged(ours.map(|value| value <= goal))),
            Self::AtLeast(goal) => format!("≥ {goal}{}", judged(ours.map(|value| value >= goal))),
            Self::RatioAtMost(goal) => format!("≤ {goal}×{}", judged(ratio.map(|value| value <= goal))),
            Self::RatioAtLeast(goal) => format!("≥ {goal}×{}", judged(ratio.map(|value| value >= goal))),
        }
    }
}

/// Values by measure and contender, one for each round.
#[derive(Debug)]
pub(crate) struct Figures {
    rows: Vec<(Measure, BTreeMap<&'static str, Vec<f64>>)>,
}

impl Figures {
    /// Makes the table's rows, in their order, without any value.
    pub(crate) fn new(measures: &[Measure]) -> Self {
        Self { rows: measures.iter().map(|&measure| (measure, BTreeMap::new())).collect() }
    }

    /// Adds one round's value to a row of the table.
    pub(crate) fn add(&mut self, measure: Measure, contender: &'static str, value: f64) {
        let row = self.rows.iter_mut().find(|(known, _)| *known == measure);
        row.expect("the table has a row for each measure").1.entry(contender).or_default().push(value);
    }

    /// Writes the medians as a Markdown table, with the ratios of the last contender to each of the others.
    /// Goals that are ratios are those to the one before it.
    pub(crate) fn markdown(&self, contenders: &[&'static str]) -> String {
        let Some((ours, others)) = contenders.split_last() else { return String::new() };
        let ratios: Vec<String> = others.iter().map(|other| format!("{ours} / {other}")).collect();
        let mut text = format!("| measure | {} | {} | goal |\n", contenders.join(" | "), ratios.join(" | "));
        text += &format!("|---|{}---|\n", "--:|".repeat(contenders.len() + others.len()));
        for (measure, values) in self.rows.iter().filter(|(_, values)| !values.is_empty()) {
            let of = |name: &str| values.get(name).and_then(|values| median(values));
            let ratio = |other: &str| {
                // Delays that a contender adds are differences, which noise may turn around.
                let (ours, other) = of(ours).zip(of(other)).filter(|(_, other)| *other > 0.0)?;
                (measure.unit != TIMES).then_some(ours / other)
            };
            let figures = contenders.iter().map(|name| of(name).map(cell));
            let ratios = others.iter().map(|other| ratio(other).map(|ratio| format!("{ratio:.2}")));
            let cells: Vec<String> =
                figures.chain(ratios).map(|cell| cell.unwrap_or_else(|| "–".to_owned())).collect();
            let base = others.last().and_then(|base| ratio(base));
            text += &format!(
                "| {}, {} | {} | {} |\n",
                measure.name,
                measure.unit,
                cells.join(" | "),
                measure.goal.cell(of(ours), base),
            );
        }
        text
    }

    /// Returns medians and every round's values.
    pub(crate) fn json(&self) -> Value {
        let flat = self.rows.iter().flat_map(|(measure, values)| values.iter().map(move |of| (measure, of)));
        let rows = flat.map(|(measure, (contender, values))| {
            json!({ "measure": measure, "contender": contender, "median": median(values), "rounds": values })
        });
        rows.collect()
    }
}

/// The unit of what is a ratio itself.
const TIMES: &str = "×";

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (below, above) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some(f64::midpoint(*below, *above))
}

/// Writes three significant digits, and whole numbers in full.
fn cell(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_holds_medians_ratios_and_verdicts_in_the_order_of_its_rows() {
        let speed = Measure { name: "speed", unit: "req/s", goal: Goal::RatioAtLeast(0.6) };
        let delay = Measure { name: "delay", unit: "ms", goal: Goal::AtMost(0.5) };
        let added = Measure { name: "added", unit: "ms", goal: Goal::RatioAtMost(2.0) };
        let memory = Measure { name: "memory", unit: "×", goal: Goal::AtMost(1.5) };
        let none = Measure { name: "none", unit: "ms", goal: Goal::Any };
        let mut figures = Figures::new(&[speed, delay, added, none, memory]);
        for value in [9.0, 1.0, 5.0] {
            figures.add(speed, "direct", value * 200.0);
            figures.add(speed, "nginx", value * 100.0);
            figures.add(speed, "modelrelay", value * 50.0);
        }
        figures.add(delay, "modelrelay", 0.25);
        figures.add(added, "nginx", -0.1);
        figures.add(added, "modelrelay", 0.2);
        figures.add(memory, "nginx", 1.0);
        figures.add(memory, "modelrelay", 2.0);
        assert_eq!(
            figures.markdown(&["direct", "nginx", "modelrelay"]),
            "| measure | direct | nginx | modelrelay | modelrelay / direct | modelrelay / nginx | goal |\n\
             |---|--:|--:|--:|--:|--:|---|\n\
             | speed, req/s | 1000 | 500 | 250 | 0.25 | 0.50 | ≥ 0.6×, **missed** |\n\
             | delay, ms | – | – | 0.250 | – | – | ≤ 0.5, met |\n\
             | added, ms | – | -0.100 | 0.200 | – | – | ≤ 2×, cannot be told |\n\
             | memory, × | – | 1.00 | 2.00 | – | – | ≤ 1.5, **missed** |\n"
        );
    }

    #[test]
    fn median_of_an_even_number_of_rounds_lies_between_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
