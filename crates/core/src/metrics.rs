//! Metrics in Prometheus' text format, version 0.0.4.
//!
//! Values are passed as arguments: each component keeps its own counters, and writes them on request. Names end in
//! their unit; counters end in `_total`. Every label has few values, so that the number of series stays small in a
//! large fleet: never a job or a VM.

use std::{collections::BTreeMap, fmt::Write as _, sync::Mutex};

/// The media type of the text.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Far more than all combinations of routes, methods and statuses; further series are counted as one.
const SERIES_MAX: usize = 4096;

/// The text of one scrape.
#[derive(Debug, Default)]
pub struct Exposition(String);

/// One metric of the text.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Exposition {
    /// A value that rises and falls.
    pub fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "gauge", help)
    }

    /// A value that only rises while the program runs.
    pub fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "counter", help)
    }

    /// A distribution of values.
    pub fn histogram(&mut self, name: &'static str, help: &str, histogram: &Histogram) {
        let family = self.family(name, "histogram", help);
        let counts = histogram.counts.lock().expect("no thread panics while holding this lock");
        let mut count = 0;
        for (bound, here) in histogram.bounds.iter().zip(&counts.buckets) {
            count += here;
            let _ = writeln!(family.text, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(family.text, "{name}_bucket{{le=\"+Inf\"}} {}", counts.all);
        let _ = writeln!(family.text, "{name}_sum {}\n{name}_count {}", counts.sum, counts.all);
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { text: &mut self.0, name }
    }

    /// The text, to be sent as [`MEDIA_TYPE`].
    pub fn into_text(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// Adds one value; each set of labels may occur once.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) -> &mut Self {
        self.text.push_str(self.name);
        for (index, (name, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{}{name}=\"{value}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.text, "{} {value}", if labels.is_empty() { "" } else { "}" });
        self
    }
}

/// Counts values by size.
#[derive(Debug)]
pub struct Histogram {
    /// Upper bounds of the buckets, ascending.
    bounds: &'static [f64],
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    buckets: Vec<u64>,
    all: u64,
    sum: f64,
}

impl Histogram {
    /// With buckets up to each of `bounds`, which ascend, and one for larger values.
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: Mutex::new(Counts { buckets: vec![0; bounds.len()], ..Counts::default() }) }
    }

    /// Counts one value.
    pub fn observe(&self, value: f64) {
        let mut counts = self.counts.lock().expect("no thread panics while holding this lock");
        if let Some(bucket) = self.bounds.iter().position(|bound| value <= *bound) {
            counts.buckets[bucket] += 1;
        }
        counts.all += 1;
        counts.sum += value;
    }
}

/// Counts by labels, with a bounded number of series.
#[derive(Debug)]
pub struct Counter<const LABELS: usize> {
    labels: [&'static str; LABELS],
    counts: Mutex<BTreeMap<[String; LABELS], u64>>,
}

impl<const LABELS: usize> Counter<LABELS> {
    /// An empty counter.
    pub fn new(labels: [&'static str; LABELS]) -> Self {
        Self { labels, counts: Mutex::default() }
    }

    /// Adds `more` to the series with these label values.
    pub fn add(&self, values: [&str; LABELS], more: u64) {
        let mut counts = self.counts.lock().expect("no thread panics while holding this lock");
        let mut values = values.map(str::to_owned);
        if counts.len() >= SERIES_MAX && !counts.contains_key(&values) {
            values = [const { "other" }; LABELS].map(str::to_owned);
        }
        *counts.entry(values).or_default() += more;
    }

    /// Writes all series.
    pub fn write(&self, exposition: &mut Exposition, name: &'static str, help: &str) {
        let mut family = exposition.counter(name, help);
        for (values, count) in &*self.counts.lock().expect("no thread panics while holding this lock") {
            let labels: Vec<(&str, &str)> = self.labels.into_iter().zip(values.iter().map(String::as_str)).collect();
            family.sample(&labels, *count as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_as_prometheus_reads_it() {
        let mut text = Exposition::default();
        text.gauge("ferry_queue_length", "Jobs that wait").sample(&[], 2.0);
        let requests = Counter::new(["route", "status"]);
        requests.add(["/api/v1/vms", "200"], 3);
        requests.add(["/api/v1/vms", "200"], 1);
        requests.add(["say \"x\"", "404"], 1);
        requests.write(&mut text, "ferry_requests_total", "Requests");
        let downtime = Histogram::new(&[0.1, 0.5]);
        [0.05, 0.2, 3.0].into_iter().for_each(|seconds| downtime.observe(seconds));
        text.histogram("ferry_downtime_seconds", "Downtime", &downtime);
        let expected = r#"# HELP ferry_queue_length Jobs that wait
# TYPE ferry_queue_length gauge
ferry_queue_length 2
# HELP ferry_requests_total Requests
# TYPE ferry_requests_total counter
ferry_requests_total{route="/api/v1/vms",status="200"} 4
ferry_requests_total{route="say \"x\"",status="404"} 1
# HELP ferry_downtime_seconds Downtime
# TYPE ferry_downtime_seconds histogram
ferry_downtime_seconds_bucket{le="0.1"} 1
ferry_downtime_seconds_bucket{le="0.5"} 2
ferry_downtime_seconds_bucket{le="+Inf"} 3
ferry_downtime_seconds_sum 3.25
ferry_downtime_seconds_count 3
"#;
        assert_eq!(text.into_text(), expected);
    }

    #[test]
    fn series_are_bounded() {
        let counter = Counter::new(["name"]);
        for number in 0..SERIES_MAX + 10 {
            counter.add([&number.to_string()], 1);
        }
        let mut text = Exposition::default();
        counter.write(&mut text, "ferry_names_total", "Names");
        let text = text.into_text();
        assert_eq!(text.lines().count(), 2 + SERIES_MAX + 1);
        assert!(text.contains("ferry_names_total{name=\"other\"} 10"), "what comes beyond is one series");
    }
}
