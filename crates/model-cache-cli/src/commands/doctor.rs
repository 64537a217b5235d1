//! `doctor`: what is wrong with settings, machine, store and Hub, and what to do.

use crate::{
    context::Context,
    exit::{Code, Failure},
    options, output, render,
};
use serde_json::{Value, json};
use tabagent_model_cache::{Examination, Finding, Severity};

pub(super) async fn doctor(cx: &Context) -> Result<Code, Failure> {
    let builder = cx.builder()?;
    let examination = cx.task(async move { Ok(builder.examine().await) }).await?;
    if cx.global.json {
        output::json(&document(&examination))?;
    } else {
        output::text(&text(&examination, cx.paint()))?;
        cx.say(&summary(&examination));
    }
    Ok(examination.kind().map_or(Code::Done, Code::from))
}

fn document(examination: &Examination) -> Value {
    let findings = examination.findings.iter().map(|finding| {
        json!({
            "area": finding.area.as_str(),
            "severity": finding.severity.as_str(),
            "what": finding.what,
            "hint": finding.hint.as_deref().map(options::into_hint),
            "code": finding.kind.map(|kind| kind.as_str()),
        })
    });
    json!({
        "problems": count(examination, Severity::Problem),
        "warnings": count(examination, Severity::Warning),
        "findings": findings.collect::<Vec<_>>(),
    })
}

fn count(examination: &Examination, severity: Severity) -> u64 {
    examination.findings.iter().filter(|finding| finding.severity == severity).count() as u64
}

/// A block an area: what was found, and under it what to do.
fn text(examination: &Examination, paint: render::Paint) -> String {
    let mut text = String::new();
    let mut area = None;
    for Finding { area: of, severity, what, hint, .. } in &examination.findings {
        if area.replace(*of) != Some(*of) {
            text += &format!("{}\n", paint.bold(of.as_str()));
        }
        let what = render::clean(what);
        text += &match severity {
            Severity::Problem => format!("  {} {what}\n", paint.red("problem:")),
            Severity::Warning => format!("  {} {what}\n", paint.yellow("warning:")),
            Severity::Fine => format!("  {}\n", paint.dim(&what)),
            _ => format!("  {what}\n"),
        };
        for line in hint.as_deref().map(options::into_hint).iter().flat_map(|hint| hint.lines()) {
            text += &format!("    {} {}\n", paint.cyan("hint:"), render::clean(line));
        }
    }
    text
}

fn summary(examination: &Examination) -> String {
    match (count(examination, Severity::Problem), count(examination, Severity::Warning)) {
        (0, 0) => "Nothing is wrong.".to_owned(),
        (0, warnings) => format!("Nothing is wrong; {}.", render::count(warnings, "warning")),
        (problems, 0) => format!("{}.", render::count(problems, "problem")),
        (problems, warnings) => format!("{}, {}.", render::count(problems, "problem"), render::count(warnings, "warning")),
    }
}
