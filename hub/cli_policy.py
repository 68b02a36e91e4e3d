"""`edgehub policy`: who may reach what."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from hub import operations
from hub.core import policy_ends
from hub.core.model import HubError, StoredPolicy
from hub.core.policing import check_policy, find_policy
from hub.core.policy.compile import Policy
from hub.core.policy.document import Rule
from hub.core.policy.evaluate import check as check_alone
from hub.core.policy.evaluate import load
from hub.core.policy.hujson import BYTES_MAX, to_text
from hub.core.policy.problems import PolicyError, Problem, excerpt
from hub.opening import current_state, doing, open_store
from hub.output import FAILED, ago, print_error, print_json, print_pairs, print_table

app = typer.Typer(
    help="The policy: who may reach what, in the format that Tailscale and Headscale have. docs/policy.md explains it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

File = Annotated[str, typer.Argument(metavar="FILE", help="A policy (HuJSON), or - for standard input.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Version = Annotated[int, typer.Option("--version", min=0, help="An older one, as `history` shows it; 0 = the newest.")]


@app.command("get")
def get_(version: Version = 0, as_json: Json = False) -> None:
    """Print the policy as it was written.

    \b
    edgehub policy get > policy.hujson
    edgehub policy get --version 3 --json
    """
    with open_store() as store, store.read() as tx:
        stored = find_policy(tx, version)
    if as_json:
        print_json({**_as_json(stored), "text": stored.text})
    else:
        sys.stdout.write(stored.text if stored.text.endswith("\n") else stored.text + "\n")


@app.command("set")
def set_(file: File, as_json: Json = False) -> None:
    """Check a policy and let it hold from now on. If anything is wrong with it, the one before stays.

    \b
    edgehub policy set policy.hujson
    edgehub policy get | sed 's/alice@/bob@/' | edgehub policy set -
    """
    text = _read(file, as_json)
    with _refusals(file, text, as_json), doing() as do:
        policy = operations.set_policy(do, text, do.actor)
    if as_json:
        print_json({"version": policy.version, **_counts(policy), "warnings": _problems(policy.document.warnings)})
    else:
        _warn(file, text, policy)
        print_error(f"policy version {policy.version} holds: {_summary(policy)}")


@app.command()
def check(file: File, as_json: Json = False) -> None:
    """Check a policy and run its tests, and change nothing. Works without a hub too.

    \b
    edgehub policy check policy.hujson
    """
    text = _read(file, as_json)
    with _refusals(file, text, as_json):
        if current_state().database.is_file():
            with open_store() as store, store.read() as tx:
                policy = check_policy(tx, text)
        else:
            policy = check_alone(text)
    if as_json:
        print_json({**_counts(policy), "problems": [], "warnings": _problems(policy.document.warnings)})
    else:
        _warn(file, text, policy)
        print_error(f"{_name(file)}: no mistakes; {_summary(policy)}")


@app.command()
def explain(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A device, an address, tag:NAME or USER@.")],
    target: Annotated[str, typer.Argument(metavar="DST[:PORT]", help="The same, and a port; without one all of them.")],
    proto: Annotated[str, typer.Option(help="tcp, udp, sctp, icmp, …, or a number; tcp when there is a port.")] = "",
    file: Annotated[str, typer.Option(help="A policy that does not hold yet, instead of the one that does.")] = "",
    as_json: Json = False,
) -> None:
    """Say whether SRC may reach DST, and by which rule.

    \b
    edgehub policy explain laptop cam-3:22
    edgehub policy explain alice@example.org tag:camera:554 --proto udp
    edgehub policy explain cam-3 10.20.0.9
    """
    with open_store() as store, store.read() as tx:
        if file:
            text = _read(file, as_json)
            with _refusals(file, text, as_json):
                policy = check_policy(tx, text)
        else:
            stored = find_policy(tx)
            text = stored.text
            policy = load(text, stored.version)
        answer = policy_ends.explain(tx, policy, source, target, proto)
    if as_json:
        print_json(
            {
                "version": policy.version,
                "source": answer.source,
                "target": answer.target,
                "verdicts": [
                    {
                        "service": verdict.service,
                        "allowed": verdict.rule is not None,
                        "rule": None if verdict.rule is None else _rule_as_json(verdict.rule, text),
                    }
                    for verdict in answer.verdicts
                ],
            }
        )
        return
    pairs = [("from", answer.source), ("to", answer.target)]
    for verdict in answer.verdicts:
        if verdict.rule is None:
            pairs.append(("denied", f"{verdict.service}: no rule allows it, and what no rule allows is denied"))
        else:
            line = text.split("\n")[verdict.rule.line - 1].strip()
            pairs.append(("allowed", f"{verdict.service}: by {verdict.rule.name} in line {verdict.rule.line}: {line}"))
    print_pairs(pairs)


@app.command()
def history(as_json: Json = False) -> None:
    """List the versions that are kept, the newest first.

    \b
    edgehub policy history
    edgehub policy get --version 12 | edgehub policy set -
    """
    with open_store() as store, store.read() as tx:
        kept = tx.policies()
    if as_json:
        print_json([_as_json(stored) for stored in kept])
        return
    print_table(
        ("VERSION", "SET", "BY", "BYTES"),
        (
            (str(stored.version), ago(stored.created_s), stored.author, str(len(stored.text.encode())))
            for stored in kept
        ),
        empty="there is no policy: every device may reach every other. `edgehub policy set FILE` sets one",
    )


@app.command()
def diff(
    old: Annotated[int, typer.Argument(metavar="[OLD]", help="A version; without it the one before NEW.")] = 0,
    new: Annotated[int, typer.Argument(metavar="[NEW]", help="A version; without it the newest.")] = 0,
    file: Annotated[str, typer.Option(help="Compare the newest, or OLD, with a file instead.")] = "",
    as_json: Json = False,
) -> None:
    """Show what changed from one version to another.

    \b
    edgehub policy diff
    edgehub policy diff 11 12
    edgehub policy diff --file policy.hujson
    """
    if file and new:
        raise HubError("--file and NEW: only one of them can be. Choose")
    with open_store() as store, store.read() as tx:
        if file:
            before = find_policy(tx, old)
            name, text = file, _read(file, as_json)
        else:
            after = find_policy(tx, new)
            if not old and after.version == 1:
                raise HubError("policy version 1: there is none before it to compare with. See `edgehub policy get`")
            before = find_policy(tx, old or after.version - 1)
            name, text = f"version {after.version}", after.text
    lines = difflib.unified_diff(
        before.text.splitlines(), text.splitlines(), f"version {before.version}", name, lineterm=""
    )
    if as_json:
        print_json({"old": before.version, "new": name, "lines": list(lines)})
    else:
        sys.stdout.write("".join(f"{line}\n" for line in lines))


def _read(file: str, as_json: bool) -> str:
    """Not more of it than a policy may have."""
    try:
        if file == "-":
            data = sys.stdin.buffer.read(BYTES_MAX + 1)
        else:
            with Path(file).open("rb") as source:
                data = source.read(BYTES_MAX + 1)
    except OSError as error:
        raise HubError(f"{file}: {error.strerror}. Name a file with a policy, or - for standard input") from error
    with _refusals(file, data.decode("utf-8", "replace"), as_json):
        return to_text(data)


@contextmanager
def _refusals(file: str, text: str, as_json: bool) -> Iterator[None]:
    """A policy that is refused is printed as FILE:LINE:COLUMN, its line, and a caret; code 1."""
    try:
        yield
    except PolicyError as error:
        if as_json:
            print_json({"problems": _problems(error.problems)})
        else:
            for problem in error.problems:
                _print_problem(file, text, problem)
            count = len(error.problems)
            print_error(f"{_name(file)}: refused, {count} mistake{'s' if count != 1 else ''}. Nothing is changed")
        raise typer.Exit(FAILED) from None


def _print_problem(file: str, text: str, problem: Problem, kind: str = "") -> None:
    line, caret = excerpt(text, problem)
    sys.stderr.write(f"{_name(file)}:{problem.line}:{problem.column}: {kind}{problem.text}\n    {line}\n    {caret}\n")


def _name(file: str) -> str:
    return "<stdin>" if file == "-" else file


def _warn(file: str, text: str, policy: Policy) -> None:
    for problem in policy.document.warnings:
        _print_problem(file, text, problem, "warning: ")


def _summary(policy: Policy) -> str:
    counts = _counts(policy)
    return f"{counts['rules']} rules, {counts['groups']} groups, {counts['tags']} tags, {counts['tests']} tests passed"


def _counts(policy: Policy) -> dict[str, int]:
    document = policy.document
    return {
        "rules": len(document.rules),
        "groups": len(document.groups),
        "tags": len(document.tag_owners),
        "tests": len(document.tests),
    }


def _problems(problems: tuple[Problem, ...]) -> list[dict[str, Any]]:
    return [{"line": problem.line, "column": problem.column, "text": problem.text} for problem in problems]


def _rule_as_json(rule: Rule, text: str) -> dict[str, Any]:
    return {"name": rule.name, "line": rule.line, "text": text.split("\n")[rule.line - 1].strip()}


def _as_json(stored: StoredPolicy) -> dict[str, Any]:
    return {"version": stored.version, "author": stored.author, "created": stored.created_s}
