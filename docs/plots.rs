//! Draws the curves of growth that `benches/run` measured: reads its JSON lines from standard input
//! and writes `growth-WHAT.svg` into a directory.
//!
//! `benches/run growth-keys | cargo run --example plots -- docs/plots`

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

/// Of one panel, in pixels.
const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 92.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 44.0;

/// What a label of the horizontal axis needs.
const LABEL: f64 = 32.0;

/// Units of the panels from left to right, with what their axes say.
const PANELS: [(&str, &str); 3] = [
    ("us", "time, µs"),
    ("ms", "time, ms"),
    ("MiB", "resident memory, MiB"),
];

/// Tell lines apart on white and on black; dashes do so without colour.
const LINES: [(&str, &str); 4] = [
    ("#3b82d8", ""),
    ("#d9701a", "7 3"),
    ("#12996f", "2 3"),
    ("#b455a5", "9 3 2 3"),
];

/// Measure, then size, then figure.
type Panel = BTreeMap<String, BTreeMap<u64, f64>>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = PathBuf::from(std::env::args().nth(1).ok_or("usage: plots DIRECTORY")?);
    // By what grows and unit.
    let mut plots: BTreeMap<String, BTreeMap<String, Panel>> = BTreeMap::new();
    for line in std::io::stdin().lines() {
        let line: serde_json::Value = serde_json::from_str(&line?)?;
        let member = |name: &str| line[name].as_str().ok_or(format!("no {name}: {line}"));
        let Some((what, size, measure)) = parts(member("name")?) else {
            continue;
        };
        let figure = line["ours"].as_f64().ok_or("no figure")?;
        let panels = plots.entry(what).or_default();
        let panel = panels.entry(member("unit")?.to_owned()).or_default();
        panel.entry(measure).or_default().insert(size, figure);
    }
    for (what, panels) in plots {
        let path = directory.join(format!("growth-{what}.svg"));
        std::fs::write(&path, draw(&what, &panels))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// `growth-WHAT-SIZE-MEASURE`, and `account-growth-DATABASE-MEASURE-SIZE` of certificates.
fn parts(name: &str) -> Option<(String, u64, String)> {
    if let Some(rest) = name.strip_prefix("account-growth-") {
        let (database, rest) = rest.split_once('-')?;
        let (measure, size) = rest.rsplit_once('-')?;
        let what = format!("certificates-{database}");
        return Some((what, size.parse().ok()?, measure.to_owned()));
    }
    let mut parts = name.strip_prefix("growth-")?.splitn(3, '-');
    let what = parts.next()?.to_owned();
    Some((what, parts.next()?.parse().ok()?, parts.next()?.to_owned()))
}

fn draw(what: &str, panels: &BTreeMap<String, Panel>) -> String {
    let shown: Vec<(&str, &Panel)> = PANELS
        .iter()
        .filter_map(|(unit, title)| Some((*title, panels.get(*unit)?)))
        .collect();
    let width = WIDTH * shown.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {HEIGHT}\" width=\"{width}\" \
         height=\"{HEIGHT}\" role=\"img\" aria-label=\"Cost by number of {what}\">\n\
         <style>text{{font:12px sans-serif;fill:#767676}}.axis{{stroke:#888}}.grid{{stroke:#8884}}\
         @media (prefers-color-scheme:dark){{text{{fill:#bbb}}}}</style>\n"
    );
    let subject = what.split('-').next().unwrap_or(what);
    for (number, (title, panel)) in shown.into_iter().enumerate() {
        let _ = writeln!(
            svg,
            "<g transform=\"translate({})\">",
            WIDTH * number as f64
        );
        draw_panel(&mut svg, title, subject, panel);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_panel(svg: &mut String, title: &str, subject: &str, panel: &Panel) {
    let sizes: Vec<u64> = {
        let all = panel.values().flat_map(|line| line.keys().copied());
        all.collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect()
    };
    let figures = || panel.values().flat_map(|line| line.values().copied());
    let step = step(figures().fold(0.0, f64::max));
    let most = (figures().fold(0.0, f64::max) / step).ceil() * step;
    let (first, last) = (sizes[0] as f64, sizes[sizes.len() - 1] as f64);
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let x = |size: u64| {
        let along = (size as f64 / first).ln() / (last / first).ln().max(f64::MIN_POSITIVE);
        LEFT + along * (right - LEFT)
    };
    let y = |figure: f64| bottom - figure / most * (bottom - TOP);
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"18\">{title}</text>");
    let mut tick = 0.0;
    while tick <= most + step / 2.0 {
        let at = y(tick);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            at + 4.0,
            grouped(tick),
        );
        tick += step;
    }
    let _ = writeln!(
        svg,
        "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>"
    );
    let mut free = 0.0;
    for &size in &sizes {
        let at = x(size);
        let _ = writeln!(
            svg,
            "<line class=\"axis\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{}\"/>",
            bottom + 4.0,
        );
        if at >= free {
            free = at + LABEL;
            let _ = writeln!(
                svg,
                "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 17.0,
                short(size),
            );
        }
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">number of {subject}</text>",
        (LEFT + right) / 2.0,
        HEIGHT - 8.0,
    );
    // Names beside the ends of the lines, apart from each other.
    let mut ends: Vec<(f64, usize, &str)> = Vec::new();
    for (number, (measure, line)) in panel.iter().enumerate() {
        let (colour, dashes) = LINES[number % LINES.len()];
        let points: Vec<String> = line
            .iter()
            .map(|(&size, &figure)| format!("{:.1},{:.1}", x(size), y(figure)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" \
             stroke-dasharray=\"{dashes}\" points=\"{}\"/>",
            points.join(" ")
        );
        for (&size, &figure) in line {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
                x(size),
                y(figure)
            );
        }
        let end = line.values().next_back().copied().unwrap_or_default();
        ends.push((y(end), number, measure));
    }
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut above = f64::NEG_INFINITY;
    for (at, number, measure) in ends {
        let at = at.max(above + 14.0);
        above = at;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" style=\"fill:{}\">{measure}</text>",
            right + 8.0,
            at + 4.0,
            LINES[number % LINES.len()].0,
        );
    }
}

/// A round distance of at most six ticks.
fn step(most: f64) -> f64 {
    let least = (most / 5.0).max(f64::MIN_POSITIVE);
    let power = 10_f64.powf(least.log10().floor());
    let round = [1.0, 2.0, 5.0, 10.0];
    let factor = round.into_iter().find(|factor| factor * power >= least);
    factor.unwrap_or(10.0) * power
}

/// With commas between thousands.
fn grouped(figure: f64) -> String {
    if figure < 10.0 && figure.fract() != 0.0 {
        return format!("{figure:.1}");
    }
    let digits = format!("{figure:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// 1000 as 1k, 1000000 as 1M.
fn short(size: u64) -> String {
    match size {
        1_000_000.. => format!("{}M", size / 1_000_000),
        1_000.. => format!("{}k", size / 1_000),
        _ => size.to_string(),
    }
}
