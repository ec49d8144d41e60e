//! What a PromQL expression asks of the metrics, and whether a scrape has it. Whether it is PromQL at all, Prometheus says.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;

/// Labels that Prometheus gives to what it scrapes.
const OF_TARGETS: [&str; 3] = ["namespace", "job", "instance"];
/// Metrics that Prometheus makes itself.
const OF_PROMETHEUS: [&str; 2] = ["up", "ALERTS"];
/// Words that stand where a metric could.
const WORDS: [&str; 5] = ["and", "or", "unless", "offset", "bool"];

/// A series: its labels with its name as `__name__`.
type Series = BTreeMap<String, String>;

/// What there is to ask for.
pub struct Known {
    series: Vec<Series>,
    line: Regex,
    label: Regex,
    /// `by (le)`, `on (job)`.
    labels_of: Regex,
    /// A metric with what it is narrowed to; a function is one with a bracket behind it.
    selector: Regex,
    matcher: Regex,
}

impl Known {
    pub fn new() -> Self {
        let pattern = |pattern| Regex::new(pattern).expect("a pattern");
        Self {
            series: Vec::new(),
            line: pattern(r"^([a-z_]+)(?:\{(.*)\})? \S+$"),
            label: pattern(r#"([a-z_]+)="((?:[^"\\]|\\.)*)""#),
            labels_of: pattern(r"\b(?:by|without|on|ignoring|group_left|group_right) *\(([^)]*)\)"),
            selector: pattern(r"([a-zA-Z_:][a-zA-Z0-9_:]*) *(\{[^}]*\}|\(|\[[^\]]*\])?"),
            matcher: pattern(r#"([a-z_]+) *(=~|!~|!=|=) *"((?:[^"\\]|\\.)*)""#),
        }
    }

    /// Takes in a scrape, in the text exposition format.
    pub fn scrape(&mut self, text: &str) {
        for line in text.lines() {
            let Some(line) = self.line.captures(line) else { continue };
            let labels = line.get(2).map_or("", |labels| labels.as_str());
            let labels = self.label.captures_iter(labels).map(|label| (label[1].to_owned(), label[2].to_owned()));
            let labels = labels.collect();
            self.add(&line[1], labels);
        }
    }

    /// Takes in a series, such as that of a recording rule.
    pub fn add(&mut self, name: &str, mut labels: Series) {
        labels.insert("__name__".to_owned(), name.to_owned());
        self.series.push(labels);
    }

    /// What of the expression is not there: each metric with its labels, and the labels by which is grouped and joined.
    pub fn lacks(&self, expression: &str) -> Vec<String> {
        let (mut lacking, mut labels) = (Vec::new(), BTreeSet::from(OF_TARGETS));
        let bare = self.labels_of.replace_all(expression, "");
        for found in self.selector.captures_iter(&bare) {
            let (name, narrowed) = (&found[1], found.get(2).map_or("", |narrowed| narrowed.as_str()));
            let before = bare[..found.get(0).expect("is there").start()].chars().next_back();
            // The unit of a duration, "+Inf".
            let is_of_a_number = before.is_some_and(|before| before.is_ascii_digit()) || name == "Inf";
            if narrowed == "(" || is_of_a_number || WORDS.contains(&name) || OF_PROMETHEUS.contains(&name) {
                continue;
            }
            let is_selected = |series: &&Series| series["__name__"] == name && self.accepts(narrowed, series);
            let selected = self.series.iter().filter(is_selected).flat_map(Series::keys).collect::<Vec<_>>();
            if selected.is_empty() {
                lacking.push(found[0].to_owned());
            }
            labels.extend(selected.into_iter().map(String::as_str));
        }
        for list in self.labels_of.captures_iter(expression) {
            let named = list[1].split(',').map(str::trim).filter(|label| !label.is_empty() && !labels.contains(label));
            lacking.extend(named.map(|label| format!("label {label}")));
        }
        lacking
    }

    /// What is excluded need not be there, but the label by which it is must.
    fn accepts(&self, matchers: &str, series: &Series) -> bool {
        self.matcher.captures_iter(matchers).all(|matcher| {
            let (label, operator, wanted) = (&matcher[1], &matcher[2], &matcher[3]);
            match (OF_TARGETS.contains(&label), series.get(label)) {
                (true, _) => true,
                (_, None) => false,
                (_, Some(value)) => match operator {
                    "=" => value == wanted,
                    "=~" => Regex::new(&format!("^(?:{wanted})$")).expect("a pattern").is_match(value),
                    _ => true,
                },
            }
        })
    }
}

#[test]
fn what_lacks_is_told() {
    let mut known = Known::new();
    known.scrape("# HELP a b\na_total{reason=\"x\\\"y\",stage=\"s\"} 3\nb_bucket{le=\"+Inf\"} 1e3\nc 0.5\n");
    for expression in [
        r#"sum by (job, reason) (rate(a_total{stage=~"s|t", reason!="z"}[5m])) > 0 and on (instance) up == 0"#,
        "histogram_quantile(0.9, sum by (le) (rate(b_bucket[1m])))",
        r#"c{job="j"} / on (job) group_left () c offset 15m < +Inf"#,
    ] {
        assert_eq!(known.lacks(expression), [""; 0], "{expression}");
    }
    for (expression, lacking) in [
        ("a_totals", "a_totals"),
        ("rate(a_totals[5m])", "a_totals[5m]"),
        (r#"a_total{stage="t"}"#, r#"a_total{stage="t"}"#),
        (r#"a_total{stage=~"t|u"}"#, r#"a_total{stage=~"t|u"}"#),
        (r#"c{stage!="t"}"#, r#"c{stage!="t"}"#),
        ("sum by (le) (c)", "label le"),
        ("c + on (reason) c", "label reason"),
    ] {
        assert_eq!(known.lacks(expression), [lacking], "{expression}");
    }
}
