"""Why a DNS message was not answered as it asked, or not believed."""

from __future__ import annotations

from enum import Enum


class DnsDrop(Enum):
    """Why the name server dropped or refused something; the value is its name in `edgeagent dns status`."""

    MALFORMED = "dns-malformed"  # shorter than a header, or an answer: nothing to reply to
    FORMAT = "dns-format"  # a query that is not of RFC 1035's form: answered with FORMERR
    REFUSED = "dns-refused"  # a name that is not ours, and nobody to ask: answered with REFUSED
    TABLE_FULL = "dns-table-full"  # the oldest query that waited gave way to a newer one: answered with SERVFAIL
    UNANSWERED = "dns-unanswered"  # neither hub nor resolver answered in time: answered with SERVFAIL
    REPLY_MALFORMED = "dns-reply-malformed"  # what a resolver sent is no DNS message
    REPLY_MISMATCH = "dns-reply-mismatch"  # what a resolver sent answers another question: a forgery, or a late answer
    REBIND = "dns-rebind"  # a public name led to a private address or one of this network: the answer was emptied
    BAD_RECORD = "dns-bad-record"  # a record of the hub's that another name or record of the network contradicts
    STRANGER = "dns-stranger"  # a query that did not come from this host
    CLIENTS_FULL = "dns-clients-full"  # a TCP connection beyond the few that are served
    CLIENT_BAD = "dns-client-bad"  # a TCP client that was too slow, or sent no DNS message
