"""`make bench` and `make bench-smoke`; see benches/README.md."""
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tempfile

from . import local, machine, measure, network, record, smoke
from .context import Bench, say
from .figures import GIB
from .origin import TOP
from .peers import BUILD, Peers
from .table import at_words, figures_of
from .workload import Outcome, Skip, Workload, turns

ROUNDS = 5
FAILED = "failed: "


def main() -> None:
    arguments = parsed()
    if arguments.readme:
        sys.exit(readme(arguments.check))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    base = pathlib.Path(arguments.dir or TOP / ".build").resolve()
    base.mkdir(parents=True, exist_ok=True)
    peers = Peers(install=not (arguments.smoke or arguments.list))
    with tempfile.TemporaryDirectory(prefix="bench.", dir=base) as room:
        # What there is, the programs built for tests know as well.
        bench = Bench(pathlib.Path(room), arguments.smoke or arguments.list, peers, arguments.shrink)
        bench.build()
        known = [*network.WORKLOADS, *local.workloads(bench)]
        if arguments.list:
            return print(listing(known))
        wanted = chosen(known, arguments.only)
        folder = record.FOLDER if arguments.record else pathlib.Path(room) if arguments.smoke else BUILD / "record"
        call = record.Record(
            date=datetime.date.today().isoformat(), commit=machine.commit(), command=arguments.told, rounds=arguments.rounds,
            machine=machine.describe(base), peers=peers.versions(), outcomes=[])
        earlier = record.of_name(call.name) if arguments.record else None
        made, outcomes = call, []
        for workload in wanted:
            outcomes += run(bench, workload, 1 if arguments.smoke else arguments.rounds)
            made = record.joined(earlier, dataclasses.replace(call, outcomes=outcomes), [workload.name for workload in known])
            # What is measured is kept, however the call ends.
            folder.mkdir(parents=True, exist_ok=True)
            document = folder / f"{made.name}.json"
            document.write_text(made.to_json())
        plots = show(made, document, peers)
        if arguments.smoke:
            smoke.check(made, wanted, plots, peers.python is not None)
            print(record.smoke_words(made))
        else:
            print(f"\n{record.terminal(made)}\n\nWritten to {folder.relative_to(TOP)}/{made.name}.md")
            if any((outcome.skipped or "").startswith(FAILED) for outcome in outcomes):
                sys.exit("bench: a workload failed; the record says which")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Our workloads beside what people use today, in turns, in one run.")
    parser.add_argument("--only", default="", metavar="NAMES", help="these workloads, with commas between; curve: all whose names begin so")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each subject [default: %(default)s]")
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument("--record", action="store_true", help="write into benches/record, which the README is made of, not into .build; what is measured "
                        "anew takes the place of what the day's record has of it")
    parser.add_argument("--shrink", type=int, default=1, metavar="N", help="sizes divided by N, for a quick look; the titles tell the whole ones")
    parser.add_argument("--dir", help="a folder with room, on the disk to be measured [default: .build]")
    parser.add_argument("--smoke", action="store_true", help="tiny inputs, debug builds, one round: that everything runs")
    parser.add_argument("--readme", action="store_true", help="write the README's figures anew from the newest record")
    parser.add_argument("--check", action="store_true", help="with --readme: only say whether they are those of the newest record")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.shrink) < 1:
        parser.error("--rounds and --shrink are at least 1")
    if arguments.record and arguments.shrink > 1:
        parser.error("--record keeps whole sizes: leave --shrink away")
    arguments.told = shlex.join(["make", "bench", *(f"{name.upper()}={value}" for name, value in (
        ("only", arguments.only), ("rounds", arguments.rounds if arguments.rounds != ROUNDS else ""), ("record", 1 if arguments.record else ""),
        ("args", f"--shrink {arguments.shrink}" if arguments.shrink > 1 else "")) if value)])
    return arguments


def chosen(known: list[Workload], only: str) -> list[Workload]:
    """Those named, in their own order. A name is a workload's, or what several begin with before a hyphen."""
    wanted = set()
    for name in filter(None, re.split(r"[,\s]+", only)):
        meant = {workload.name for workload in known if workload.name == name} or {
            workload.name for workload in known if workload.name.startswith(f"{name}-")}
        if not meant:
            sys.exit(f"bench: no workload {name}; there are {', '.join(workload.name for workload in known)}")
        wanted |= meant
    return [workload for workload in known if not wanted or workload.name in wanted]


def listing(known: list[Workload]) -> str:
    """Name and one line of each."""
    width = max(len(workload.name) for workload in known)
    return "\n".join(f"{workload.name:{width}}  {workload.what}{' (root)' if workload.root else ''}" for workload in known)


# -- running ----------------------------------------------------------------------------------------------------------


def run(bench: Bench, workload: Workload, rounds: int) -> list[Outcome]:
    """A workload's outcome; of a curve one for each point."""
    rounds = min(rounds, workload.rounds or rounds)
    if not workload.x:
        return [run_once(bench, workload, rounds)]
    points = workload.smoke_points if bench.smoke else workload.points
    # Of sizes: the large ones are long enough to tell with one run.
    return [run_once(bench, workload, 1 if at > GIB else rounds, at) for at in points]


def run_once(bench: Bench, workload: Workload, rounds: int, at: float | None = None) -> Outcome:
    """Subjects in turns. What can't be run is told and left out, and what fails too, so that half an hour is not lost; but not of a smoke."""
    outcome = Outcome(workload.name, workload.what, workload.warmth, at, x=workload.x, y=workload.y, commit=machine.commit())
    if not bench.smoke:
        say(f"{workload.name}{'' if at is None else f' at {at_words(workload.x, at)}'}: {workload.what}")
    try:
        with workload.prepare(bench) if at is None else workload.prepare(bench, at) as prepared:
            outcome.missing, outcome.notes = prepared.missing, prepared.notes
            subjects = {subject.name: subject for subject in prepared.subjects}
            outcome.runs = {name: [] for name in subjects}
            for round, name in turns(list(subjects), rounds):
                outcome.runs[name].append(subjects[name].run(round))
            outcome.notes += outcome.disturbed()
    except Skip as why:
        outcome.skipped = str(why)
    except (measure.Failed, subprocess.CalledProcessError) as failed:
        if bench.smoke:
            raise
        outcome.skipped, outcome.runs = f"{FAILED}{words(failed)}", {}
    if not bench.smoke:
        told = [f"left out: {outcome.skipped}"] if outcome.skipped else [*figures_of(outcome).lines(), *outcome.notes]
        told += [f"without {name}: {why}" for name, why in outcome.missing.items()]
        print("\n".join(told), file=sys.stderr, flush=True)
    return outcome


def show(made: record.Record, document: pathlib.Path, peers: Peers) -> list[str]:
    """What is made of the record's JSON, beside it: plots, page."""
    folder = document.parent
    if peers.python:
        subprocess.run([peers.python, "-m", "bench.plot", document], check=True, env={**os.environ, "PYTHONPATH": str(TOP / "benches")})
    else:
        say("no plots: matplotlib is not to be had from PyPI")
    plots = record.plots_of(made, folder)
    (folder / f"{made.name}.md").write_text(record.page(made, plots))
    return plots


def readme(check: bool) -> int:
    """Writes the README's part, or says whether it is the newest record's."""
    path = TOP / "README.md"
    newest = record.newest()
    is_now = path.read_text()
    should_be = record.with_part(is_now, record.readme_part(newest, record.plots_of(newest) if newest else []))
    if check and is_now != should_be:
        print("README.md: its figures are not those of the newest record in benches/record\nhint: make bench-readme", file=sys.stderr)
        return 1
    if not check:
        path.write_text(should_be)
    return 0


def words(failed: Exception) -> str:
    """What failed, with what it said."""
    said = getattr(failed, "stderr", None)
    return f"{failed}{': ' + said.decode(errors='replace').strip() if isinstance(said, bytes) else ''}"


if __name__ == "__main__":
    try:
        main()
    except (measure.Failed, smoke.Insane, subprocess.CalledProcessError) as failed:
        sys.exit(f"bench: {words(failed)}")
    except KeyboardInterrupt:
        sys.exit(130)
