"""`edgehub rollout`: bring a version, or settings, to the fleet group by group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from hub import rolling
from hub.core.model import HubError
from hub.core.rollout import Plan, Progress, Rollout, read_groups
from hub.core.windows import read as read_windows
from hub.opening import current_state, doing, open_store
from hub.operations import Doing
from hub.output import ago, duration, parse_duration, print_error, print_json, print_pairs, print_table
from hub.published import read as read_published

app = typer.Typer(
    help="Bring a version of the agent, or settings, to the fleet group by group.",
    epilog="Begin with:  edgehub update publish FILE,  edgehub rollout create --version V,  edgehub rollout approve 1",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Number = Annotated[
    int, typer.Argument(metavar="ROLLOUT", min=1, help="Its number, as `edgehub rollout list` shows it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Why = Annotated[str, typer.Option(help="For those who see it.")]


@app.command()
def create(
    version: Annotated[str, typer.Option(help="Of the agent, as `edgehub update list` shows it.")] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting, instead of a version. Repeatable."),
    ] = None,
    select: Annotated[str, typer.Option(help="Which devices: the filter of `edgehub devices list`; all without.")] = "",
    groups: Annotated[str, typer.Option(help="How many have been begun in all, group by group.")] = "1,10%,50%,100%",
    soak: Annotated[str, typer.Option(help="How long each group is watched before the next: 0s, 1h, 2d.")] = "1h",
    enough: Annotated[int, typer.Option(help="Percent of a group's reachable devices that must have ended.")] = 100,
    wait: Annotated[str, typer.Option(help="After which a group goes on without those that are offline.")] = "1d",
    max_failed: Annotated[int, typer.Option(help="So many failed devices pause it; 0: however many.")] = 0,
    max_failed_percent: Annotated[int, typer.Option(help="Such a share of those that ended pauses it; 0: any.")] = 10,
    windows: Annotated[str, typer.Option(help="When devices may begin: `mon-fri 01:00-05:00, sat 22:00-06:00`.")] = "",
    time_zone: Annotated[str, typer.Option(help="Of the windows: Europe/Berlin.")] = "UTC",
    approve_each: Annotated[
        bool, typer.Option("--approve-each", help="Each group needs approval, not only the first.")
    ] = False,
    tries: Annotated[int, typer.Option(help="Of one device, 10 minutes to 12 hours apart.")] = 3,
    patience: Annotated[str, typer.Option(help="How long the last group waits for devices that do not come.")] = "14d",
    confirm: Annotated[str, typer.Option(help="Settings: within which a device must reach the hub with them.")] = "10m",
    draft: Annotated[bool, typer.Option("--draft", help="Do not ask for approval yet: `submit` does.")] = False,
    as_json: Json = False,
) -> None:
    """Make a rollout: which devices, how many first, what stops it. Nothing begins before it is approved.

    The devices are chosen now. Each group says how many have been begun in all: `1,10%,100%` is one device, then up to
    a tenth, then everyone. A group begins devices that are online; the last one begins the others when they come back.

    \b
    edgehub rollout create --version 0.2.0
    edgehub rollout create --version 0.2.0 --select 'tag:camera -name~lab' --groups 2,25%,100% --soak 6h
    edgehub rollout create --version 0.2.0 --windows 'mon-fri 01:00-05:00' --time-zone Europe/Berlin --approve-each
    edgehub rollout create --set log-level=debug --select name:gate-7 --groups 100%
    """
    if bool(version) is bool(set_):
        raise HubError("what is to be rolled out? Give --version V, or --set NAME=VALUE")
    plan = Plan(
        groups=read_groups(groups),
        soak_s=_seconds("soak", soak),
        enough_percent=enough,
        wait_s=_seconds("wait", wait),
        fail_count=max_failed,
        fail_percent=max_failed_percent,
        windows=read_windows(windows, time_zone),
        each=approve_each,
        tries=tries,
        patience_s=_seconds("patience", patience),
        confirm_s=_seconds("confirm", confirm),
    )
    with doing() as do:
        if version:
            found = read_published(current_state().updates)
            made = rolling.create_version(do, found, version, select, plan, draft=draft)
        else:
            made = rolling.create_settings(do, _settings(set_ or []), select, plan, draft=draft)
        shown = rolling.describe(do.tx, made)
    if as_json:
        print_json(shown)
        return
    sizes = ", ".join(str(group["devices"]) for group in shown["groups"])
    next_ = "submit" if draft else "approve"
    print_error(f"rollout {made.id}: {rolling.what(made)} for {made.total} devices in groups of {sizes}")
    print_error(f"nothing begins yet. Next: edgehub rollout {next_} {made.id}")


@app.command("list")
def list_(
    number: Annotated[int, typer.Option("-n", "--number", min=1, max=200, help="How many.")] = 20, as_json: Json = False
) -> None:
    """List rollouts, the newest first.

    \b
    edgehub rollout list
    """
    with open_store() as store, store.read() as tx:
        found = [rolling.describe(tx, each, with_groups=as_json) for each in tx.rollouts.newest(number)]
        names = {each.id: rolling.what(each) for each in tx.rollouts.newest(number)}
    if as_json:
        print_json(found)
        return
    print_table(
        ("ROLLOUT", "WHAT", "DEVICES", "STATE", "GROUP", "DONE", "FAILED", "CREATED", "WHY"),
        (
            (
                *(str(each["id"]), names[each["id"]], str(each["devices"]), each["state"], str(each["group"])),
                *(str(each["counts"]["done"]), str(each["counts"]["failed"]), ago(each["created"]), each["why"] or "-"),
            )
            for each in found
        ),
        empty="there is no rollout. `edgehub rollout create --help` shows how to make one",
    )


@app.command()
def show(rollout: Number, as_json: Json = False) -> None:
    """Show how far a rollout is, group by group.

    \b
    edgehub rollout show 3
    """
    with open_store() as store, store.read() as tx:
        found = rolling.find(tx, rollout)
        shown, what = rolling.describe(tx, found), rolling.what(found)
    if as_json:
        print_json(shown)
        return
    plan, counts = found.plan, shown["counts"]
    stops = [f"{plan.fail_count} devices"] * bool(plan.fail_count) + [f"{plan.fail_percent} %"] * bool(
        plan.fail_percent
    )
    print_pairs(
        [
            ("what", what),
            ("devices", f"{found.total}: {found.selector or 'all'}"),
            ("state", found.state.value + (f": {found.why}" if found.why else "")),
            ("since", ago(found.since_s)),
            ("made", f"{ago(found.created_s)} by {found.actor}"),
            ("approved", found.approved_by or "-"),
            ("windows", str(plan.windows)),
            ("failures", f"pause it at {' or '.join(stops)}" if stops else "do not pause it"),
            ("soak", duration(plan.soak_s)),
            (
                "so far",
                ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count) or "-",
            ),
            ("next", ", ".join(f"edgehub rollout {verb} {found.id}" for verb in shown["can"]) or "-"),
        ]
    )
    print_table(
        ("GROUP", "UP TO", "DEVICES", "DONE", "FAILED", "UNDER WAY", "STATE"),
        ([str(value) for value in group.values()] for group in shown["groups"]),
        empty="no groups",
    )


@app.command()
def devices(
    rollout: Number,
    state: Annotated[
        str, typer.Option(help="Only those: pending, wanted, fetching, trial, retry, done, failed …")
    ] = "",
    number: Annotated[int, typer.Option("-n", "--number", min=1, max=100_000, help="How many.")] = 200,
    as_json: Json = False,
) -> None:
    """List the devices of a rollout in their order, and why each is where it is.

    \b
    edgehub rollout devices 3
    edgehub rollout devices 3 --state failed --json
    """
    try:
        wanted = Progress(state) if state else None
    except ValueError:
        known = ", ".join(each.value for each in Progress)
        raise HubError(f"--state {state}: one of {known} expected") from None
    with open_store() as store, store.read() as tx:
        found = rolling.find(tx, rollout)
        rows = rolling.named(tx, tx.rollouts.devices(found.id, state=wanted, limit=number))
    if as_json:
        print_json([rolling.describe_device(row, name) for row, name in rows])
        return
    print_table(
        ("DEVICE", "STATE", "GROUP", "TRIES", "VERSION", "CHANGED", "WHY"),
        (
            (
                *(name or row.device, row.state.value, str(row.group + 1 or "-"), str(row.tries), row.version or "-"),
                *(ago(row.changed_s), row.why or "-"),
            )
            for row, name in rows
        ),
        empty=f"rollout {rollout} has no device in that state",
    )


@app.command()
def submit(rollout: Number, as_json: Json = False) -> None:
    """Ask for the approval of a draft.

    \b
    edgehub rollout submit 3
    """
    _decide(rollout, as_json, rolling.submit)


@app.command()
def approve(rollout: Number, as_json: Json = False) -> None:
    """Let it begin; with --approve-each, the group that waits.

    \b
    edgehub rollout approve 3
    """
    _decide(rollout, as_json, rolling.approve)


@app.command()
def pause(rollout: Number, why: Why = "", as_json: Json = False) -> None:
    """Let no further device begin. Those that have the new one keep it; one on trial ends that.

    \b
    edgehub rollout pause 3 --why 'the press is here today'
    """
    _decide(rollout, as_json, lambda do, number: rolling.pause(do, number, why))


@app.command()
def resume(rollout: Number, as_json: Json = False) -> None:
    """Go on after a pause. Failures up to now are accepted: only further ones pause it again.

    \b
    edgehub rollout resume 3
    """
    _decide(rollout, as_json, rolling.resume)


@app.command()
def abort(rollout: Number, why: Why = "", as_json: Json = False) -> None:
    """End it for good. Devices that have the new one keep it.

    \b
    edgehub rollout abort 3
    """
    _decide(rollout, as_json, lambda do, number: rolling.abort(do, number, why))


def _decide(number: int, as_json: bool, action: Callable[[Doing, int], Rollout]) -> None:
    with doing() as do:
        found = action(do, number)
        shown = rolling.describe(do.tx, found)
    if as_json:
        print_json(shown)
    else:
        print_error(f"rollout {found.id} ({rolling.what(found)}): {found.state.value}")


def _settings(words: list[str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or name in settings:
            raise HubError(f"--set {word[:60]}: NAME=VALUE expected, each name once. Write for example log-level=debug")
        settings[name] = value
    return settings


def _seconds(name: str, text: str) -> int:
    if text in ("0", "0s"):
        return 0
    try:
        return parse_duration(text)
    except ValueError as error:
        raise HubError(f"--{name}: {error}") from None
