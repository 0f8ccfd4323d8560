//! Bars with ranges, as SVG.

use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const NAMES: f64 = 290.0;
const ROW: f64 = 26.0;
const HEAD: f64 = 40.0;

/// One bar: its length is the median of its values, with a line from the least to the most.
pub(super) struct Bar<'a> {
    pub(super) name: &'a str,
    pub(super) values: Vec<f64>,
    pub(super) is_ours: bool,
}

/// A plot of these bars, those with no values left out.
pub(super) fn bars(title: &str, bars: &[Bar<'_>]) -> String {
    let bars: Vec<&Bar<'_>> = bars.iter().filter(|bar| !bar.values.is_empty()).collect();
    let most = bars.iter().flat_map(|bar| &bar.values).copied().fold(f64::MIN_POSITIVE, f64::max);
    let height = HEAD + ROW * bars.len() as f64 + 12.0;
    let at = |value: f64| NAMES + (WIDTH - NAMES - 70.0) * value / most;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"24\" font-weight=\"bold\">{}</text>\n",
        escaped(title)
    );
    for (row, bar) in bars.iter().enumerate() {
        let top = HEAD + ROW * row as f64;
        let (middle, base) = (top + 8.0, top + 13.0);
        let median = super::measure::median(bar.values.iter().copied());
        let (least, greatest) = bar.values.iter().fold((f64::MAX, 0.0_f64), |(a, b), v| (a.min(*v), b.max(*v)));
        let colour = if bar.is_ours { "#06c" } else { "#8a8d90" };
        writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{base:.0}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{NAMES}\" y=\"{top:.0}\" width=\"{:.1}\" height=\"16\" fill=\"{colour}\"/>\
             <path d=\"M{:.1} {middle:.0}H{:.1}\" stroke=\"#151515\"/>\
             <text x=\"{:.1}\" y=\"{base:.0}\">{median:.1}</text>",
            NAMES - 8.0,
            escaped(bar.name),
            at(median) - NAMES,
            at(least),
            at(greatest),
            at(greatest) + 6.0,
        )
        .expect("memory takes it");
    }
    svg + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_is_the_slowest_and_markup_in_names_is_text() {
        let bar = |name, values: &[f64]| Bar { name, values: values.to_vec(), is_ours: false };
        let svg = bars("a < b", &[bar("<slow>", &[4.0, 2.0, 3.0]), bar("fast", &[1.0]), bar("none", &[])]);
        assert!(svg.contains("a &lt; b") && svg.contains("&lt;slow&gt;") && !svg.contains("none"), "{svg}");
        let widths: Vec<f64> =
            svg.split("width=\"").skip(1).filter_map(|part| part.split('"').next()?.parse().ok()).collect();
        assert_eq!(widths, [300.0, 100.0], "{svg}");
    }
}
