"""What a change leaves behind: jobs, one small step each, and the hub's own dates."""

from __future__ import annotations

from functools import partial

from hub.core import clients, commands, relays, retention, rollouts, routes
from hub.core.model import CLAIM_GRACE_S, Device, DeviceState, Job, JobKind, Kind, Op, Outgoing
from hub.core.scribe import Scribe
from hub.core.store import Tx

_TOLD = (DeviceState.ACTIVE, DeviceState.EXPIRED)


def work(scribe: Scribe, tx: Tx, wall_s: int, limit: int = 64) -> int:
    """Do up to `limit` jobs, the oldest first; how many were done. A job that has lost its point is dropped."""
    jobs = tx.jobs(limit)
    for job in jobs:
        tx.drop_job(job.id)
        _do(scribe, tx, job, wall_s)
    return len(jobs)


def look_at_dates(scribe: Scribe, tx: Tx, wall_s: int, limit: int = 64) -> bool:
    """What has a time that has come: admissions, tokens, keys, records, passes, relays, commands, audit rows, rollouts.

    True: may be more.
    """
    done = _look_at_devices(scribe, tx, wall_s, limit)
    relays.refresh(tx, wall_s)
    routes.refresh(tx)
    clients.keep_keys(scribe, tx, wall_s)
    for token in tx.tokens_to_finish(wall_s, limit):
        token.finished_s = token.not_after
        tx.save_token(token)
        done += 1
    for token in tx.tokens_to_close(wall_s - CLAIM_GRACE_S, limit):
        token.account = False
        tx.save_token(token)
        tx.put_out(Outgoing(Op.REVOKE, token.claim))
        done += 1
    done += commands.expire(tx, wall_s, limit)
    more = retention.prune(tx, wall_s)
    return rollouts.look(scribe, tx, wall_s) or more or done >= limit


def _look_at_devices(scribe: Scribe, tx: Tx, wall_s: int, limit: int) -> int:
    done = 0
    for device in tx.devices_to_expire(wall_s, limit):
        device.state = DeviceState.EXPIRED
        device.removed_s = relays.void(device, wall_s)
        tx.save_device(device)
        relays.tell_cut_off(tx, device)  # the end may have been set when passes beyond it were out
        done += 1
    for key in tx.node_keys_expired(wall_s, limit):
        tx.drop_node_key(key.key)
        owner = tx.device(key.device)
        if owner is not None and owner.state is DeviceState.ACTIVE:
            scribe.push(tx, owner)
        done += 1
    for device in tx.records_to_renew(wall_s, limit):
        device.record = b""
        device.record_renew_s = 0
        tx.save_device(device)
        tx.add_jobs_for_acquaintances(JobKind.REC, device.id)
        done += 1
    for device in tx.passes_to_renew(wall_s, limit):
        device.pass_renew_s = 0
        tx.save_device(device)
        tx.add_job(JobKind.MAP, "", device.id)
        done += 1
    return done


def _do(scribe: Scribe, tx: Tx, job: Job, wall_s: int) -> None:
    if job.kind is JobKind.MAPS:
        relays.step_maps(tx, job.subject)
        return
    if job.kind is JobKind.POLICY:
        if scribe.policing.step(tx, job.subject):
            routes.approve_waiting(scribe, tx, partial(scribe.policing.approves_route, tx))
        return
    if job.kind is JobKind.CUT_OFF:
        if _told(tx, job.reader) is not None:
            relays.step_cut_off(tx, job.reader, job.subject, wall_s)
        return
    subject = tx.device(job.subject)
    if job.kind is JobKind.GONE:
        reader = _told(tx, job.reader)
        if reader is not None and reader.kind is Kind.RELAY:
            # Whether it is back or not. Of relays none hears so: the one that came back would take it for its own end
            if subject is not None and subject.kind is Kind.DEVICE and subject.removed_s:
                scribe.gone(tx, reader, job.subject, wall_s, since_s=subject.removed_s)
        elif reader is not None and (subject is None or subject.state not in _TOLD):
            scribe.gone(tx, reader, job.subject, wall_s)
    elif subject is None or subject.state not in _TOLD:
        return
    elif job.kind is JobKind.REC:
        reader = _told(tx, job.reader)
        if reader is not None and reader.state is DeviceState.ACTIVE:
            scribe.rec(tx, reader, subject, wall_s)
    elif job.kind is JobKind.MAP:
        scribe.map(tx, subject, wall_s)
    else:
        subject.feed_key = scribe.entropy(32)
        subject.feed_generation += 1
        scribe.map(tx, subject, wall_s)
        tx.add_jobs_for_acquaintances(JobKind.REC, subject.id)


def _told(tx: Tx, device_id: str) -> Device | None:
    device = tx.device(device_id)
    return device if device is not None and device.state in _TOLD else None
