//! Seconds of what `make torture` does for as long as one likes: fixed seeds, the program itself.

use std::process::Command;

/// Runs the program; what it says of itself, as JSON.
fn torture(args: &[&str]) -> serde_json::Value {
    let output = Command::new(env!("CARGO_BIN_EXE_torture")).args(args).arg("--json").output().unwrap();
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "torture {}: {}\n{said}\n{complained}", args.join(" "), output.status);
    serde_json::from_str(&said).unwrap()
}

fn number(summary: &serde_json::Value, field: &str) -> u64 {
    summary[field].as_u64().unwrap_or_else(|| panic!("{field} in {summary}"))
}

#[test]
fn a_store_stands_processes_killed_at_any_instant() {
    let summary = torture(&["--seed", "1", "--kills", "30"]);
    assert!(number(&summary, "kills") >= 30 && number(&summary, "checks") >= 10, "{summary}");
}

#[test]
fn a_store_stands_power_losses() {
    let summary = torture(&["--seed", "2", "--until-losses", "20"]);
    assert!(number(&summary, "losses") >= 20, "{summary}");
    assert!(summary["lost"]["unsynced"].as_u64().unwrap() > 0, "{summary}");
}

#[test]
fn a_store_goes_on_from_a_kill_between_the_steps_of_a_change() {
    let points = [
        "fill.row_written",
        "reserve.allocated",
        "reserve.committed",
        "fill.block_journaled",
        "seal.durable",
        "seal.committed",
        "free.marked",
        "free.punched",
        "free.chunks_gone",
        "derive.row_put",
        "gc.orphans_freed",
    ];
    let mut args = vec!["--seed", "3", "--every-fail-point"];
    points.iter().for_each(|point| args.extend(["--point", point]));
    let summary = torture(&args);
    for point in points {
        assert!(summary["kills_at"][point].as_u64() > Some(0), "{point} was not passed: {summary}");
    }
}

#[test]
fn a_store_stands_a_hub_that_fails_as_well() {
    let summary = torture(&["--seed", "4", "--soak", "--power-loss", "--seconds", "6"]);
    assert!(number(&summary, "faults") > 0, "{summary}");
    assert_eq!(number(&summary, "faults"), number(&summary, "faults_survived"));
}
