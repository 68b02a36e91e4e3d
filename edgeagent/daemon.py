"""The agent: makes the parts, runs their loop, and ends them in order. What they do is theirs."""

from __future__ import annotations

import _thread
import errno
import logging
import os
import selectors
import signal
import socket
import sys
from contextlib import suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from edgeagent import crypto, memory
from edgeagent.context import Context, limits_of
from edgeagent.engine.choice import AVOIDED_VARIABLE
from edgeagent.engine.fast import library
from edgeagent.io import logring
from edgeagent.io.keystore import Keystore, StateError, StateFile
from edgeagent.io.localapi import LocalApi, refusal
from edgeagent.io.logring import LogRing
from edgeagent.io.mqtt import MqttLink
from edgeagent.io.proxy import parse_proxy
from edgeagent.io.tun import TunGone
from edgeagent.membership import Membership
from edgeagent.proto.ledger import Cause
from edgeagent.proto.token import Token, TokenError
from edgeagent.tunnel import TunnelError

if TYPE_CHECKING:
    from types import TracebackType

    from edgeagent.config import Settings
    from edgeagent.enrolment import Enrolment
    from edgeagent.io.localapi import Client
    from edgeagent.io.watchdog import Watchdog

log = logging.getLogger("edgeagent")
OK, FAILED, REFUSED = 0, 1, 4
RESTART = -1  # no exit status: agentd.py begins the agent anew, in this process
FAREWELL_TIMEOUT_S = 1.0  # for the broker to take the last messages
CRASH_CHARS_MAX = 16_384
RELEASE_AFTER_S = 1.0  # by then the device has joined, or at least connected
THREAD_STACK_BYTES = 524_288  # of those that ask name servers; the system's 8 MiB would count against the ceiling
PUMP_ANSWER_MS = 2_000  # for the pump to follow what it was told, before it counts as hanging
PAUSE_S = 0.05  # after a turn that found no memory


def run(settings: Settings, token: str | None, control_fd: int | None, *, in_background: bool = False) -> int:
    """Be the agent until a signal or `down`; returns the exit status, or RESTART. Without a network it waits to be told
    of one. `in_background`: nobody watches it, and no command waits for it any more.

    `control_fd` is a connected socket of the command that started this process in the background: its request is
    served, it is told why when there can be no agent, and when it ends without a network to be in, so does the agent.
    """
    # The command shows what it is told; in the background there is nobody else to log to.
    _thread.stack_size(THREAD_STACK_BYTES)
    watched = control_fd is None and not in_background
    ring = LogRing(limits_of(settings).log_lines, sys.stderr if watched else None)
    logring.install(ring, getattr(logging, settings.log_level.upper()))
    control = None if control_fd is None else socket.socket(fileno=control_fd)
    if control is not None:
        control.set_inheritable(False)
    keystore = Keystore(settings.state_dir)
    selector = selectors.DefaultSelector()
    try:
        keystore.open()
        if os.path.exists(keystore.path(StateFile.SETTINGS)):
            from edgeagent.settingstrial import overlay

            overlay(settings, keystore)
            log.setLevel(getattr(logging, settings.log_level.upper()))
        provider = crypto.load(beside_ctypes=library.path() is not None)
        context = Context(
            monotonic(), settings=settings, crypto=provider, keystore=keystore, selector=selector, ring=ring
        )
        agent = Agent(context)
        try:
            agent.start(token, control)
            if in_background:
                agent.leave_terminal()
            try:
                agent.loop()
            except (OSError, MemoryError) as error:
                agent.leave_word(error)
                raise
        finally:
            agent.close()
    except TunGone:
        return _failed(control, f"{settings.interface}: somebody removed it")
    except (StateError, TunnelError, crypto.CryptoUnavailable, TokenError) as error:
        return _failed(control, str(error))
    except MemoryError:
        return _failed(control, "the memory ceiling does not leave enough to go on: raise it with --memory-ceiling")
    except OSError as error:
        return _failed(control, f"{error.filename or 'system'}: {error.strerror}")
    finally:
        keystore.close()
        selector.close()
    return agent.exit_status


def _failed(control: socket.socket | None, why: str) -> int:
    log.error("%s", why)
    if control is not None:
        with suppress(OSError):
            control.sendall(refusal("failed", f"{why}."))
    return FAILED


class Agent:
    """One device: idle, joining or a member. The loop carries time and events between link, part and local API."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.now = context.started_at
        self.link = MqttLink(context.selector, parse_proxy(context.settings.proxy))
        context.accounts.watch(self.link, Cause.CONTROL, lambda sock: self.link.told)
        self.api = LocalApi(context.settings.socket, self._serve, context.selector)
        self.membership: Membership | None = None
        self.exit_status = OK
        self._enrolment: Enrolment | None = None
        self._waiting: list[Client] = []  # for the interface to be there
        self._told = ""
        self._refusal = ""
        self._in_background = False
        self._control: Client | None = None
        self._last_words: list[Client] = []  # who asked us to stop
        self._stopping = False
        self._took_leave = False  # the broker has our last words
        self._crash_path = os.path.join(context.keystore.directory, "crash")
        self._release_at: float | None = context.started_at + RELEASE_AFTER_S
        self._watchdog: Watchdog | None = None
        self._signals, self._wakeup = socket.socketpair()
        for end in (self._signals, self._wakeup):
            end.setblocking(False)
        context.selector.register(self._signals, selectors.EVENT_READ, self._signalled)

    # What it is doing

    @property
    def state(self) -> str:
        if self.membership is not None:
            return "cut off by the hub" if self.membership.cut_off else "member"
        if self._enrolment is not None:
            return "waiting for approval" if self._enrolment.waiting else "joining"
        return "not joined"

    @property
    def progress(self) -> str:
        return self._refusal if self._enrolment is None else self._enrolment.progress

    # Its life

    def start(self, token: str | None, control: socket.socket | None) -> None:
        """Take up the state that the last run left. Raises StateError, TunnelError, TokenError, OSError."""
        signal.set_wakeup_fd(self._wakeup.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.api.open()
        now = self.now = monotonic()
        if self.context.settings.watchdog not in ("auto", "off") or "NOTIFY_SOCKET" in os.environ:
            from edgeagent.io.watchdog import Watchdog

            self._watchdog = Watchdog(now, self.context.settings.watchdog)
        context = self.context
        if os.path.exists(context.keystore.path(StateFile.RESOLVER)):  # an agent died here
            from edgeagent.hostresolver import restore

            restore(context.keystore)
        if os.path.exists(context.keystore.path(StateFile.ROUTING)):
            from edgeagent import routing  # the agent before this one was killed

            routing.restore(context)
        if context.admission is not None:
            context.keystore.remove(StateFile.TOKEN)  # there after a power cut: it is answered, and still a secret
            self.membership = Membership(now, context, self.link, context.admission)
        elif token is not None:
            self._begin_join(now, token)
        elif (kept := context.load_or_none(StateFile.TOKEN)) is not None:
            self._begin_join(now, kept.decode("ascii", "replace"))
        elif control is None:
            log.info("not joined: waiting for edgeagent up --join")
        if control is not None:
            self._in_background = True
            self._control = self.api.adopt(control.dup())

    def loop(self) -> None:
        """Until `stop`, a signal, or a refusal that nothing can mend. Raises MemoryError where many turns in a row
        found no memory."""
        while not self._stopping:
            self._turn_or_drop()
        self._farewell()
        with suppress(FileNotFoundError):
            os.unlink(self._crash_path)

    def close(self) -> None:
        """Undo everything in order; who asked for the end hears of it last."""
        signal.set_wakeup_fd(-1)
        if self._took_leave:
            self.link.close()
        else:
            self.link.drop()  # then the Last Will says that we are gone
        if self.membership is not None:
            self.membership.close()
        if self._watchdog is not None:
            self._watchdog.close()
        self.context.accounts.close(monotonic())
        self.context.keystore.close()
        self.api.stop_listening()
        for client in self._last_words:
            client.answer({})
        self.api.close()
        self.context.selector.unregister(self._signals)
        self._signals.close()
        self._wakeup.close()

    # For requests

    def join(self, now: float, token: Token, text: str, host: str | None) -> bool:
        """Begin to join, or begin anew with another token; a membership ends. False when the token cannot be kept."""
        self.context.ring.hide(text)
        if not self.context.save(StateFile.TOKEN, text.encode()):
            return False
        self.link.drop()  # where this was a member, the Last Will says that it is gone
        self.link.events.clear()
        if self.membership is not None:
            self.membership.save_cache(now)  # the epochs, which must not be used again
            self.membership.close()
            self.membership = None
            self.context.keystore.remove(StateFile.ADMISSION)
        self._refusal = ""
        from edgeagent.enrolment import Enrolment  # a member never needs it: 0.3 MiB

        self._enrolment = Enrolment(now, self.context, self.link, token, host or self.context.settings.hostname)
        return True

    def await_up(self, now: float, client: Client) -> None:
        """Answer `client` when this device is a member; refuse at once when nothing leads there."""
        if self.membership is None and self._enrolment is None:
            client.refuse("not-joined", "this device is a member of no network. Join one: edgeagent up --join TOKEN.")
            return
        self._waiting.append(client)
        self._told = ""
        self._tell_waiting()

    def stop(self, client: Client) -> None:
        self._last_words.append(client)
        self._stopping = True

    # The loop

    def _deadline(self) -> float | None:
        part = self.membership or self._enrolment
        times = [
            self.link.poll_timeout(),
            self.api.poll_timeout(),
            self._release_at,
            part.poll_timeout() if part is not None else None,
            self.context.accounts.poll_timeout(),
            self._watchdog.poll_timeout() if self._watchdog is not None else None,
        ]
        return min((at for at in times if at is not None), default=None)

    def _turn_or_drop(self) -> None:
        """What finds no memory is dropped: a device that ends where nobody is would be worse. The C library has all
        that it needs, and carries established flows meanwhile."""
        try:
            self._turn(self._deadline())
        except MemoryError:
            pass
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
        else:
            self.context.ceiling.passed()
            return
        if not self.context.ceiling.hit():
            raise MemoryError
        sleep(PAUSE_S)

    def _turn(self, deadline: float | None) -> None:
        for key, _ in self.context.selector.select(None if deadline is None else max(0.0, deadline - monotonic())):
            key.data(monotonic(), key.fd)
        now = self.now = monotonic()
        if deadline is not None and deadline <= now:
            self.link.on_timeout(now)
            self.api.on_timeout(now)
            if self._release_at is not None and self._release_at <= now:
                self._release_at = None
                memory.release()
                self.context.ceiling.enforce()
        part = self.membership or self._enrolment
        if part is not None:
            events = self.link.events
            while events:
                part.handle(now, events.popleft())
            part.on_timeout(now)
            part.settle(now)
        if self.membership is not None and self.membership.restart_wanted and not self._stopping:
            log.info("ending, to begin anew")
            self.exit_status = RESTART
            self._stopping = True
        elif self.membership is not None and not self._stopping and (why := self.membership.engine_given_up):
            log.warning("engine kernel: %s. Beginning anew with another one", why)
            os.environ[AVOIDED_VARIABLE] = why  # for the start that follows, and no other
            self.exit_status = RESTART
            self._stopping = True
        self.context.accounts.on_wake(now)
        if self._enrolment is not None:
            self._follow_enrolment(now)
        if self._waiting or self._control is not None:
            self._follow_clients()
        if self._watchdog is not None:
            self._watchdog.turned(now, self._pump_answers)

    def _pump_answers(self) -> bool:
        pump = getattr(self.membership.tunnel.engine, "pump", None) if self.membership is not None else None
        return pump is None or bool(pump.sync(PUMP_ANSWER_MS))

    def _begin_join(self, now: float, text: str) -> None:
        self.context.ring.hide(text)
        token = Token.decode(self.context.crypto, text)
        if not self.join(now, token, text, None):
            raise StateError("the join token could not be kept")

    def _follow_enrolment(self, now: float) -> None:
        enrolment = self._enrolment
        assert enrolment is not None
        if enrolment.admission is not None:
            self.context.keystore.save(StateFile.ADMISSION, enrolment.admission.encode())
            self.context.keystore.remove(StateFile.TOKEN)
            self._enrolment = None
            self.link.close()
            self.link.events.clear()
            self.membership = Membership(now, self.context, self.link, enrolment.admission)
            self.membership.on_timeout(now)
        elif enrolment.refusal:
            log.warning("%s", enrolment.refusal)
            for client in self._waiting:
                client.refuse("refused", f"{enrolment.refusal}.")
            self._waiting.clear()
            self._refusal, enrolment.refusal = enrolment.refusal, ""
            if not (enrolment.is_final or self._in_background):
                return  # nobody is here to give it another token
            self.context.keystore.remove(StateFile.TOKEN)
            self._enrolment = None
            if self._in_background:  # a service stays, to be joined by another token
                self.exit_status = REFUSED
                self._stopping = True

    def _follow_clients(self) -> None:
        self._tell_waiting()
        if self._control is not None and not self._control.is_open:
            self._control = None
            if self.membership is None and self._enrolment is None:
                self.exit_status = FAILED
                self._stopping = True
            self.leave_terminal()

    def _tell_waiting(self) -> None:
        self._waiting = [client for client in self._waiting if client.is_open]
        if self.membership is not None:
            if self._waiting:
                from edgeagent import requests

                for client in self._waiting:
                    client.answer(requests.describe(self.membership))
                self._waiting.clear()
        elif self.progress != self._told:
            self._told = self.progress
            for client in self._waiting:
                client.progress(text=self.progress)

    def _serve(self, now: float, client: Client, verb: str, request: dict[str, Any]) -> None:
        from edgeagent import requests  # not before somebody asks: 0.15 MiB

        try:
            requests.serve(now, self, client, verb, request)
        except MemoryError:
            self.api.drop(client)  # it would wait for its answer for a day
            raise

    def leave_terminal(self) -> None:
        """The command that started us has its answer: its terminal is no longer ours to write to."""
        self._in_background = True
        sys.excepthook = self._keep_crash
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 2)  # whatever sys.stderr is: None, where 2 was closed
        if null != 2:
            os.close(null)

    def leave_word(self, error: Exception) -> None:
        """Of an error that ends an agent in the background: it says no more than what the system said."""
        if self._in_background:
            self._keep_crash(type(error), error, error.__traceback__)

    def _keep_crash(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """A bug ends the agent, and no terminal is there to tell: leave the traceback beside the state."""
        import traceback  # diet.py has kept it out until now

        lines = [self.context.ring.clean(line) for line in traceback.format_exception(kind, error, trace)]
        with suppress(OSError), open(self._crash_path, "w") as file:
            file.write("\n".join(lines)[-CRASH_CHARS_MAX:])

    def _farewell(self) -> None:
        if self.membership is None:
            return
        self.membership.farewell(monotonic(), returns=self.exit_status == RESTART)
        deadline = monotonic() + FAREWELL_TIMEOUT_S
        while self.link.unacknowledged and monotonic() < deadline:
            self._turn(deadline)
        self._took_leave = not self.link.unacknowledged

    def _signalled(self, _now: float, _fd: int) -> None:
        with suppress(BlockingIOError):
            self._signals.recv(64)
        self._stopping = True
