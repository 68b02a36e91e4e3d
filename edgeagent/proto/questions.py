"""Questions to the hub: one under way for each thing asked, repeated a few times; refusals are remembered a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from edgeagent.proto.records import Query

ATTEMPTS_MAX = 3
RETRY_GROWTH = 2.0
SILENCE_TTL_S = 5.0  # a hub that did not answer is not asked the same again for so long


class Question:
    """What is asked, under which id, and when to ask again. `due_at` is None while the hub cannot be reached."""

    __slots__ = ("attempts", "due_at", "gives_up_at", "number", "query")

    def __init__(self, number: int, query: Query, gives_up_at: float) -> None:
        self.number = number
        self.query = query
        self.attempts = 0
        self.due_at: float | None = None
        self.gives_up_at = gives_up_at


class Questions:
    """At most `asks_max` under way and `negatives_max` refusals remembered.

    Drive it: `ask`, then send what `due(now)` returns; `answered` or `refused` when the hub speaks; `expired(now)`
    gives what nobody answered in time. `timeout_s` is how long the first attempt waits.
    """

    def __init__(self, asks_max: int, negatives_max: int, jitter: Callable[[], float]) -> None:
        self._asks_max = asks_max
        self._negatives_max = negatives_max
        self._jitter = jitter
        self._pending: OrderedDict[Query, Question] = OrderedDict()
        self._by_number: dict[int, Question] = {}
        self._negatives: OrderedDict[Query, float] = OrderedDict()  # query → until when
        self.negatives_gave_way = 0  # refusals forgotten because others needed the room
        self.refused_full = 0  # not asked because too much else was under way
        self._number = 0
        self.timeout_s = 4.0

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def negatives(self) -> int:
        return len(self._negatives)

    def pending(self, query: Query) -> bool:
        return query in self._pending

    def count(self, form: str) -> int:
        """How many questions of one form ("a", "h" or "k") are under way."""
        return sum(1 for asked, _ in self._pending if asked == form)

    def is_refused(self, now: float, query: Query) -> bool:
        """Whether the hub said no, or nothing, a short while ago."""
        until = self._negatives.get(query)
        if until is None:
            return False
        if until <= now:
            del self._negatives[query]
            return False
        return True

    def ask(self, now: float, query: Query, *, reachable: bool) -> bool:
        """Begin to ask, or go on. False when too many other questions are under way."""
        if query in self._pending:
            return True
        if len(self._pending) >= self._asks_max:
            self.refused_full += 1
            return False
        gives_up_at = now + self.timeout_s * sum(RETRY_GROWTH**attempt for attempt in range(ATTEMPTS_MAX))
        question = Question(self.next_number(), query, gives_up_at)
        question.due_at = now if reachable else None
        self._pending[query] = question
        self._by_number[question.number] = question
        return True

    def next_number(self) -> int:
        """A number for a message that may be answered."""
        self._number += 1
        return self._number

    def due(self, now: float) -> list[Question]:
        """Questions to send now; each is scheduled for its next attempt."""
        due = []
        for question in self._pending.values():
            if question.due_at is not None and question.due_at <= now and question.attempts < ATTEMPTS_MAX:
                wait_s = self.timeout_s * RETRY_GROWTH**question.attempts
                question.attempts += 1
                question.due_at = now + wait_s * (1.0 + 0.1 * self._jitter())
                due.append(question)
        return due

    def connected(self, now: float) -> None:
        """What the last connection asked may never have arrived."""
        for question in self._pending.values():
            question.due_at = now
            question.attempts = 0

    def disconnected(self) -> None:
        for question in self._pending.values():
            question.due_at = None

    def query_of(self, number: int) -> Query | None:
        """What was asked under `number`, if that is still open."""
        question = self._by_number.get(number)
        return None if question is None else question.query

    def answered(self, query: Query) -> None:
        """The answer is there, asked for or not."""
        self._close(query)
        self._negatives.pop(query, None)

    def refused(self, now: float, query: Query, ttl_s: float) -> None:
        """The hub, or its silence, said no: remember it for `ttl_s`."""
        self._close(query)
        self._negatives[query] = now + ttl_s
        self._negatives.move_to_end(query)
        if len(self._negatives) > self._negatives_max:
            self._negatives.popitem(last=False)
            self.negatives_gave_way += 1

    def forget_refusals(self) -> None:
        """What the hub said no to may be answered otherwise from now on."""
        self._negatives.clear()

    def open_queries(self) -> list[Query]:
        return list(self._pending)

    def expired(self, now: float) -> list[Query]:
        """Queries that nobody answered in time; each is remembered as refused for a moment."""
        queries = [query for query, question in self._pending.items() if question.gives_up_at <= now]
        for query in queries:
            self.refused(now, query, SILENCE_TTL_S)
        return queries

    def poll_timeout(self) -> float | None:
        times = [question.gives_up_at for question in self._pending.values()]
        times += [
            question.due_at
            for question in self._pending.values()
            if question.due_at is not None and question.attempts < ATTEMPTS_MAX
        ]
        return min(times, default=None)

    def _close(self, query: Query) -> None:
        question = self._pending.pop(query, None)
        if question is not None:
            del self._by_number[question.number]
