//! Metrics as the text that Prometheus reads: OpenMetrics 1.0.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::cells::BUCKETS;
use super::metrics::{ALL, Kind, Metric};

/// The media type of [`render`]'s text.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A value of a metric for one set of labels.
#[derive(Debug, Clone)]
pub struct Sample {
    pub(super) metric: &'static Metric,
    pub(super) labels: Vec<(&'static str, String)>,
    value: Value,
}

/// A value.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Counter(u64),
    Gauge(i64),
    Histogram {
        sum: f64,
        /// How many fell into each bucket alone.
        counts: Vec<u64>,
    },
}

impl Sample {
    pub(super) fn new<const N: usize>(
        metric: &'static Metric,
        labels: [(&'static str, String); N],
        value: Value,
    ) -> Self {
        Self {
            metric,
            labels: labels.into(),
            value,
        }
    }

    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        match &self.value {
            Value::Counter(value) => encoder.encode_counter::<NoLabelSet, _, u64>(value, None),
            Value::Gauge(value) => encoder.encode_gauge(value),
            Value::Histogram { sum, counts } => {
                let bounds = BUCKETS.into_iter().chain([f64::INFINITY]);
                let buckets: Vec<_> = bounds.zip(counts.iter().copied()).collect();
                let count = counts.iter().sum();
                encoder.encode_histogram::<NoLabelSet>(*sum, count, &buckets, None)
            }
        }
    }
}

/// The samples as text, in the order of [`ALL`].
pub fn render(samples: Vec<Sample>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Samples(samples)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Samples(Vec<Sample>);

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in ALL {
            let mut own = self
                .0
                .iter()
                .filter(|sample| sample.metric == *metric)
                .peekable();
            if own.peek().is_none() {
                continue;
            }
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut described = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            for sample in own {
                if sample.labels.is_empty() {
                    sample.encode(described.encode_family(&NO_LABELS)?)?;
                } else {
                    sample.encode(described.encode_family(&sample.labels)?)?;
                }
            }
        }
        Ok(())
    }
}

const NO_LABELS: [(&str, &str); 0] = [];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{AUDIT_RECORDS, MODULE_UP, Metrics};
    use std::time::Duration;

    #[test]
    fn the_text_is_what_prometheus_expects() {
        let metrics = Metrics::default();
        metrics.audit_commit.observe(Duration::from_millis(2));
        let mut samples = metrics.samples();
        samples.push(Sample::counter(&AUDIT_RECORDS, [], 7));
        samples.push(Sample::gauge(
            &MODULE_UP,
            [("module", "a\"b\\\n".into())],
            1,
        ));
        let text = render(samples).unwrap();
        for line in [
            "# TYPE opcert_audit_records counter",
            "# HELP opcert_audit_records Durable records of the audit trail",
            "opcert_audit_records_total 7",
            r#"opcert_module_up{module="a\"b\\\n"} 1"#,
            r#"opcert_audit_commit_seconds_bucket{le="0.001"} 0"#,
            r#"opcert_audit_commit_seconds_bucket{le="0.0025"} 1"#,
            r#"opcert_audit_commit_seconds_bucket{le="+Inf"} 1"#,
            "opcert_audit_commit_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
