//! Completion over time, as SVG.

use std::time::Duration;

use plotters::prelude::*;

use super::region::Outcome;

const SIZE: (u32, u32) = (960, 540);

/// Points of a line: more could not be told apart.
const POINTS: usize = 1_000;

/// A line a region: the share of its machines that are complete. The bounds stand as vertical lines.
pub(super) fn svg(outcomes: &[Outcome]) -> Result<String, String> {
    let mut text = String::new();
    draw(&mut text, outcomes)?;
    Ok(text)
}

fn draw(text: &mut String, outcomes: &[Outcome]) -> Result<(), String> {
    let last = |outcome: &Outcome| outcome.completions.last().map_or(0.0, Duration::as_secs_f64);
    let end = outcomes.iter().map(|outcome| last(outcome).max(outcome.row.bound_seconds)).fold(0.001, f64::max) * 1.05;
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(told)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(20)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..end, 0.0..1.0)
        .map_err(told)?;
    let percent = |share: &f64| format!("{:.0} %", share * 100.0);
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .axis_desc_style(("sans-serif", 16))
        .label_style(("sans-serif", 14))
        .x_desc("seconds")
        .y_desc("machines complete")
        .y_label_formatter(&percent)
        .draw()
        .map_err(told)?;
    let mut bounds: Vec<f64> = outcomes.iter().map(|outcome| outcome.row.bound_seconds).collect();
    bounds.dedup();
    for bound in bounds {
        let line = LineSeries::new([(bound, 0.0), (bound, 1.0)], BLACK.stroke_width(1));
        chart.draw_series(line).map_err(told)?;
    }
    for outcome in outcomes {
        let line = LineSeries::new(steps(outcome, end), Palette99::pick(outcome.row.region).stroke_width(2));
        chart.draw_series(line).map_err(told)?;
    }
    root.present().map_err(told)
}

fn steps(outcome: &Outcome, end: f64) -> Vec<(f64, f64)> {
    let (times, machines) = (&outcome.completions, outcome.row.machines as f64);
    let mut points = vec![(0.0, 0.0)];
    let stride = times.len().div_ceil(POINTS).max(1);
    for (at, time) in times.iter().enumerate().filter(|(at, _)| at % stride == 0 || at + 1 == times.len()) {
        let seconds = time.as_secs_f64();
        let before = points.last().map_or(0.0, |point| point.1);
        points.extend([(seconds, before), (seconds, (at + 1) as f64 / machines)]);
    }
    let share = points.last().map_or(0.0, |point| point.1);
    points.push((end, share));
    points
}

fn told(error: impl std::error::Error) -> String {
    format!("--plot: {error}")
}
