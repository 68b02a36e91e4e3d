"""Which of the hubs on one PostgreSQL database leads: the one whose session holds a lock there.

The lock is the session's, so it is free as soon as the server knows that its holder is gone; and whoever writes through
the session that holds it, leads while it writes. Who is there, the server's own list of sessions says.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from hub.store.database import APPLICATION_ID

SERVING = "edgehub serve "  # how the sessions of running hubs begin to call themselves
NAME_MAX = 63  # PostgreSQL cuts what is longer

# Two numbers: another space than that of the one number that makes a writer wait.
_TAKE = text("SELECT pg_try_advisory_lock(:ours, 1)").bindparams(ours=APPLICATION_ID)
_CALL = text("SELECT set_config('application_name', :name, false)")
_MEMBERS = text(
    """\
SELECT a.application_name, l.pid IS NOT NULL AS leads, extract(epoch FROM a.backend_start)::bigint AS since_s,
       coalesce(extract(epoch FROM clock_timestamp() - a.state_change), 0)::float AS silent_s, a.pid
FROM pg_stat_activity a
LEFT JOIN pg_locks l ON l.pid = a.pid AND l.locktype = 'advisory' AND l.database = a.datid
     AND l.classid::bigint = :ours AND l.objid::bigint = 1 AND l.objsubid = 2 AND l.granted
WHERE a.datname = current_database() AND left(a.application_name, :length) = :serving
ORDER BY leads DESC, a.backend_start, a.pid"""
).bindparams(ours=APPLICATION_ID, serving=SERVING, length=len(SERVING))
_END = text("SELECT pg_terminate_backend(:pid)")


@dataclass(slots=True, frozen=True)
class Member:
    """A hub that is connected to the database."""

    name: str  # "HOST PID"
    leads: bool
    since_s: int  # wall time
    silent_s: float  # since it was last heard of; 0 where the server does not tell this role


def call(connection: Connection, name: str) -> None:
    """The session's name; `name` is "HOST PID"."""
    connection.execute(_CALL, {"name": (SERVING + name)[:NAME_MAX]})


def take(connection: Connection) -> bool:
    """Whether this session has the lock now; ask once, for the lock counts how often."""
    taken: bool = connection.execute(_TAKE).scalar_one()
    return taken


def members(connection: Connection) -> list[Member]:
    """Hubs that serve, the leader first."""
    return [
        Member(row.application_name.removeprefix(SERVING), row.leads, row.since_s, row.silent_s)
        for row in connection.execute(_MEMBERS)
    ]


def end_silent(connection: Connection, silent_s: float) -> str:
    """End the session of a leader that was not heard of for so long: its machine is gone, or it hangs.

    Its name; "" when there is none.
    """
    for row in connection.execute(_MEMBERS):
        if row.leads and row.silent_s > silent_s:
            connection.execute(_END, {"pid": row.pid})
            return str(row.application_name).removeprefix(SERVING)
    return ""
