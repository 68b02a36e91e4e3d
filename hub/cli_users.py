"""`edgehub users`: who signs in to the dashboard and the API, and as what."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer

from hub.core.model import HubError
from hub.core.people import API_TOKEN_LIFE_MAX_S, PASSWORD_MAX, Person, check_password, check_role
from hub.core.roles import PERMISSIONS, Access, Principal
from hub.opening import actor, change, open_store
from hub.output import ago, parse_duration, print_error, print_json, print_pairs, print_table
from hub.store import people as stored

app = typer.Typer(
    help="Users: people who sign in to the dashboard, and their roles.", no_args_is_help=True, rich_markup_mode=None
)

Login = Annotated[str, typer.Argument(metavar="LOGIN", help="As `edgehub users list` shows it.")]
Role = Annotated[str, typer.Option(help=f"One of {', '.join(access.value for access in Access)}.")]
PasswordFile = Annotated[
    Path | None, typer.Option("--password-file", help="A file with the password; - is standard input.")
]


@app.command()
def add(
    login: Annotated[str, typer.Argument(metavar="LOGIN", help="Short name or email address, in small letters.")],
    role: Role = Access.VIEWER.value,
    name: Annotated[str, typer.Option(help="The person's name.")] = "",
    password_file: PasswordFile = None,
    no_password: Annotated[bool, typer.Option("--no-password", help="Signs in by OIDC only.")] = False,
) -> None:
    """Add a user. The password is asked for on a terminal; else one is made and printed, once.

    \b
    edgehub users add ada --role admin
    edgehub users add ada@example.org --role operator --no-password
    """
    from hub import people  # Argon2 is not loaded for the other commands

    access = check_role(role)
    password, made = ("", False) if no_password else choose_password(login, password_file)
    with change() as (tx, _, wall_s):
        people.add_person(tx, wall_s, actor(), login=login, role=access, name=name, password=password)
    if made:
        print_pairs([("password", password)])
    print_error(f"{login} is {access.value}")


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List users by login.

    \b
    edgehub users list
    """
    found: list[Person] = []
    with open_store() as store, store.read() as tx:
        while page := stored.people(tx.connection, after=found[-1].login if found else "", limit=500):
            found += page
    if as_json:
        print_json(
            [
                {
                    "id": person.id,
                    "login": person.login,
                    "name": person.name,
                    "role": person.role.value,
                    "disabled": bool(person.disabled_s),
                    "password": bool(person.password),
                    "oidc": person.issuer is not None,
                    "created": person.created_s,
                    "seen": person.seen_s,
                }
                for person in found
            ]
        )
        return
    print_table(
        ("LOGIN", "ROLE", "SIGNS IN BY", "SEEN", "NAME"),
        (
            (
                person.login,
                person.role.value + (" DISABLED" if person.disabled_s else ""),
                " ".join(filter(None, ("password" * bool(person.password), "oidc" * (person.issuer is not None))))
                or "-",
                ago(person.seen_s),
                person.name or "-",
            )
            for person in found
        ),
        empty="there are no users. `edgehub users add ada --role owner` makes one",
    )


@app.command("role")
def role_(
    login: Login,
    role: Annotated[str, typer.Argument(metavar="ROLE", help="owner, admin, operator, auditor or viewer.")],
) -> None:
    """Give a user another role. Their sessions end.

    \b
    edgehub users role ada operator
    """
    from hub import people

    access = check_role(role)
    with change() as (tx, _, wall_s):
        people.set_role(tx, wall_s, actor(), people.find_person(tx, login), access)
    print_error(f"{login} is {access.value}")


@app.command()
def disable(login: Login) -> None:
    """Let a user in no more: sessions end, API tokens are revoked.

    \b
    edgehub users disable ada
    """
    from hub import people

    with change() as (tx, _, wall_s):
        people.set_disabled(tx, wall_s, actor(), people.find_person(tx, login), True)
    print_error(f"{login} is disabled")


@app.command()
def enable(login: Login) -> None:
    """Let a disabled user in again. API tokens stay revoked.

    \b
    edgehub users enable ada
    """
    from hub import people

    with change() as (tx, _, wall_s):
        people.set_disabled(tx, wall_s, actor(), people.find_person(tx, login), False)
    print_error(f"{login} may sign in again")


@app.command("reset-password")
def reset_password(login: Login, password_file: PasswordFile = None) -> None:
    """Give a user another password. Their sessions end.

    \b
    edgehub users reset-password ada
    """
    from hub import people

    password, made = choose_password(login, password_file)
    with change() as (tx, _, wall_s):
        people.set_password(tx, wall_s, actor(), people.find_person(tx, login), password)
    if made:
        print_pairs([("password", password)])
    print_error(f"{login} has another password")


@app.command()
def token(
    login: Login,
    scope: Annotated[list[str], typer.Option(help=f"What it may do; repeatable. {', '.join(PERMISSIONS)}.")],
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    expires: Annotated[str, typer.Option(help="How long it works: 24h, 30d, at most 400d.")] = "90d",
) -> None:
    """Make an API token for a user and print it, alone, on standard output. It is shown once: only a hash is kept.

    \b
    edgehub users token ada --scope devices:read --scope audit:read > api.token
    """
    from hub import people

    try:
        life_s = parse_duration(expires)
    except ValueError as error:
        raise HubError(f"--expires {error}, at most {API_TOKEN_LIFE_MAX_S // 86_400}d") from error
    with change() as (tx, _, wall_s):
        owner = people.find_person(tx, login)
        if owner.disabled_s:
            raise HubError(f"user {login}: disabled. `edgehub users enable {login}` lets them in again")
        who = Principal(owner.id, owner.login, owner.name, owner.role)
        _, text = people.make_token(tx, wall_s, who, name=name, scopes=tuple(scope), life_s=life_s, actor=actor())
    sys.stdout.write(text + "\n")


def choose_password(login: str, file: Path | None) -> tuple[str, bool]:
    """(password, whether it was made and must be printed once): from a file, asked for on a terminal, or made."""
    if file is not None:
        try:
            text = sys.stdin.readline() if str(file) == "-" else file.read_text(encoding="utf-8")
        except OSError as error:
            raise HubError(f"{file}: cannot be read ({error.strerror})") from error
        return check_password(text[: PASSWORD_MAX + 2].rstrip("\r\n"), login), False
    if sys.stdin.isatty():
        text = typer.prompt(f"Password for {login} (empty: make one)", hide_input=True, default="", show_default=False)
        if text:
            if typer.prompt("Again", hide_input=True) != text:
                raise HubError("password: the two differ. Try again")
            return check_password(text, login), False
    return secrets.token_urlsafe(15), True
