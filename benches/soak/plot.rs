//! Samples as a Markdown table, as lines of blocks, and as an SVG.

use std::fmt::Write;

use super::sample::Sample;

/// A curve: its name with unit, and its value.
type Curve = (&'static str, fn(&Sample) -> f64);

const CURVES: [Curve; 8] = [
    ("memory, MB", |sample| sample.memory),
    ("disk, MB", |sample| sample.disk),
    ("file descriptors", |sample| sample.files),
    ("lag of the file, s", |sample| sample.lag[0]),
    ("lag of the slow one, s", |sample| sample.lag[1]),
    ("lag of the flapping one, s", |sample| sample.lag[2]),
    ("waiting for the flapping one", |sample| sample.waiting[0]),
    ("waiting for the dead one", |sample| sample.waiting[1]),
];

/// Rows of the table, whatever the number of samples.
const ROWS: usize = 20;

pub(crate) fn table(samples: &[Sample]) -> String {
    let mut text = String::from("| s | posts/s | ");
    CURVES.iter().for_each(|(name, _)| text.push_str(&format!("{name} | ")));
    text.push_str("dropped for the dead one |\n|---|---|");
    text.push_str(&"---|".repeat(CURVES.len() + 1));
    let step = samples.len().div_ceil(ROWS).max(1);
    let (mut seconds, mut posts) = (0.0, 0.0);
    for sample in samples.iter().skip(step - 1).step_by(step) {
        let rate = (sample.posts - posts) / (sample.seconds - seconds);
        (seconds, posts) = (sample.seconds, sample.posts);
        text.push_str(&format!("\n| {seconds:.0} | {rate:.0} | "));
        let values = CURVES.iter().map(|(_, value)| value(sample));
        let cells: Vec<String> = values.chain([sample.evicted]).map(number).collect();
        text.push_str(&format!("{} |", cells.join(" | ")));
    }
    text.push('\n');
    text
}

fn number(value: f64) -> String {
    match value {
        value if value < 100.0 && value.fract() != 0.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

/// Returns a line of blocks for each curve, from zero to its maximum.
pub(crate) fn text(samples: &[Sample]) -> String {
    const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let mut text = String::new();
    for (name, value) in CURVES {
        let most = samples.iter().map(value).fold(0.0, f64::max);
        let line: String = samples
            .iter()
            .map(|sample| BLOCKS[(value(sample) / most.max(f64::MIN_POSITIVE) * 8.0).round() as usize])
            .collect();
        text.push_str(&format!("{name:>28} {line} 0 to {}\n", number(most)));
    }
    text
}

/// Returns a picture with a panel for each curve.
pub(crate) fn svg(samples: &[Sample]) -> String {
    const WIDTH: f64 = 880.0;
    const HEIGHT: f64 = 70.0;
    let end = samples.last().map_or(1.0, |sample| sample.seconds);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        WIDTH + 40.0,
        (HEIGHT + 36.0) * CURVES.len() as f64 + 20.0
    );
    for (place, (name, value)) in CURVES.iter().enumerate() {
        let top = (HEIGHT + 36.0) * place as f64 + 26.0;
        let most = samples.iter().map(value).fold(0.0, f64::max);
        let points = samples.iter().fold(String::new(), |mut points, sample| {
            let x = 20.0 + sample.seconds / end * WIDTH;
            let y = top + HEIGHT - value(sample) / most.max(f64::MIN_POSITIVE) * HEIGHT;
            let _ = write!(points, "{x:.1},{y:.1} ");
            points
        });
        let _ = write!(
            svg,
            "<text x=\"20\" y=\"{:.0}\">{name}: 0 to {}, over {end:.0} s</text>\n\
             <rect x=\"20\" y=\"{top}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"#ccc\"/>\n\
             <polyline points=\"{points}\" fill=\"none\" stroke=\"#1f6feb\" stroke-width=\"1.5\"/>\n",
            top - 6.0,
            number(most)
        );
    }
    svg.push_str("</svg>\n");
    svg
}
