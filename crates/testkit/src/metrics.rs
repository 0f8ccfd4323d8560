//! Parses the metrics text as strictly as Prometheus does.

use std::collections::{BTreeMap, BTreeSet};

/// The result of a scrape.
#[derive(Debug)]
pub struct Scraped {
    /// The names of all metrics, including those without a value.
    pub names: BTreeSet<String>,
    values: BTreeMap<String, f64>,
}

impl Scraped {
    /// Parses a text of format 0.0.4.
    ///
    /// # Panics
    /// A line violates the format, a series occurs twice, or a value precedes its metric.
    pub fn read(text: &str) -> Self {
        let mut scraped = Self { names: BTreeSet::new(), values: BTreeMap::new() };
        let mut kind = String::new();
        for line in text.lines() {
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                let (name, is) = declared.split_once(' ').expect("a name and a type");
                assert!(["gauge", "counter", "histogram"].contains(&is), "{line}");
                assert_eq!(
                    is == "counter",
                    name.ends_with("_total"),
                    "a counter's name ends in _total, no other's: {line}"
                );
                assert!(scraped.names.insert(name.to_owned()), "{name} is there twice");
                kind = is.to_owned();
            } else if !line.starts_with("# HELP ") {
                let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
                let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
                let name = series.split('{').next().unwrap_or_default();
                let of = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
                let of = of.filter(|_| kind == "histogram").unwrap_or(name);
                assert!(scraped.names.contains(of), "{name} has no type");
                assert!(scraped.values.insert(series.to_owned(), value).is_none(), "{series} is there twice");
            }
        }
        scraped
    }

    /// The value of a series, written as in the text; 0 if there is none.
    pub fn value(&self, series: &str) -> f64 {
        self.values.get(series).copied().unwrap_or_default()
    }

    /// The sum of all series of a metric with this label, written as in the text.
    pub fn sum(&self, name: &str, label: &str) -> f64 {
        let is_it = |series: &str| series.starts_with(&format!("{name}{{")) && series.contains(label);
        self.values.iter().filter(|(series, _)| is_it(series)).map(|(_, value)| value).sum()
    }
}
