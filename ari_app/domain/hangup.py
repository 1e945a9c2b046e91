"""Hangup causes: ITU-T Q.850 values, their names, and SIP status codes for them as RFC 3398 maps them.

Asterisk reports a Q.850 value for every channel, whatever its technology, and takes one when it is told to hang up.
"""

from __future__ import annotations

from enum import IntEnum


class Cause(IntEnum):
    """Q.850 table 1: the values that Asterisk uses."""

    UNALLOCATED_NUMBER = 1
    NO_ROUTE_TO_TRANSIT_NETWORK = 2
    NO_ROUTE_TO_DESTINATION = 3
    CHANNEL_UNACCEPTABLE = 6
    CALL_AWARDED_DELIVERED = 7
    NORMAL_CLEARING = 16
    USER_BUSY = 17
    NO_USER_RESPONDING = 18
    NO_ANSWER = 19
    SUBSCRIBER_ABSENT = 20
    CALL_REJECTED = 21
    NUMBER_CHANGED = 22
    REDIRECTED_TO_NEW_DESTINATION = 23
    EXCHANGE_ROUTING_ERROR = 25
    ANSWERED_ELSEWHERE = 26
    DESTINATION_OUT_OF_ORDER = 27
    INVALID_NUMBER_FORMAT = 28
    FACILITY_REJECTED = 29
    RESPONSE_TO_STATUS_ENQUIRY = 30
    NORMAL_UNSPECIFIED = 31
    NO_CIRCUIT_AVAILABLE = 34
    NETWORK_OUT_OF_ORDER = 38
    TEMPORARY_FAILURE = 41
    SWITCHING_EQUIPMENT_CONGESTION = 42
    ACCESS_INFORMATION_DISCARDED = 43
    REQUESTED_CHANNEL_UNAVAILABLE = 44
    RESOURCE_UNAVAILABLE = 47
    FACILITY_NOT_SUBSCRIBED = 50
    OUTGOING_CALLS_BARRED = 52
    INCOMING_CALLS_BARRED = 54
    BEARER_NOT_AUTHORIZED = 57
    BEARER_NOT_AVAILABLE = 58
    SERVICE_NOT_AVAILABLE = 63
    BEARER_NOT_IMPLEMENTED = 65
    FACILITY_NOT_IMPLEMENTED = 69
    ONLY_RESTRICTED_DIGITAL = 70
    SERVICE_NOT_IMPLEMENTED = 79
    INVALID_CALL_REFERENCE = 81
    USER_NOT_IN_CUG = 87
    INCOMPATIBLE_DESTINATION = 88
    INVALID_MESSAGE = 95
    MANDATORY_ELEMENT_MISSING = 96
    MESSAGE_TYPE_NONEXISTENT = 97
    WRONG_MESSAGE = 98
    ELEMENT_NONEXISTENT = 99
    INVALID_ELEMENT_CONTENTS = 100
    WRONG_CALL_STATE = 101
    RECOVERY_ON_TIMER_EXPIRY = 102
    MANDATORY_ELEMENT_LENGTH = 103
    PROTOCOL_ERROR = 111
    INTERWORKING = 127


# RFC 3398 section 8.2.6.1. 487 has no cause (it answers our own CANCEL); 488 and 606 depend on a Warning header that
# Asterisk does not show us, and nearly always mean that no codec was in common.
_SIP_TO_CAUSE = {
    400: 41, 401: 21, 402: 21, 403: 21, 404: 1, 405: 63, 406: 79, 407: 21, 408: 102, 410: 22, 413: 127, 414: 127,
    415: 79, 416: 127, 420: 127, 421: 127, 423: 127, 480: 18, 481: 41, 482: 25, 483: 25, 484: 28, 485: 1, 486: 17,
    488: 65, 500: 41, 501: 79, 502: 38, 503: 41, 504: 102, 505: 127, 513: 127, 600: 17, 603: 21, 604: 1, 606: 65,
}  # fmt: skip

# RFC 3398 section 7.2.4.1. 16 is not in it: a call that was up ends with BYE, which has no status.
_CAUSE_TO_SIP = {
    1: 404, 2: 404, 3: 404, 17: 486, 18: 408, 19: 480, 20: 480, 21: 403, 22: 410, 23: 410, 26: 404, 27: 502, 28: 484,
    29: 501, 31: 480, 34: 503, 38: 503, 41: 503, 42: 503, 47: 503, 55: 403, 57: 403, 58: 503, 65: 488, 70: 488,
    79: 501, 87: 403, 88: 503, 102: 504, 111: 500, 127: 500,
}  # fmt: skip


def describe(cause: int) -> str:
    """A cause for people and records: `17 user busy`; a value that Q.850 does not name: `200 unknown cause`.

    0 is Asterisk's own, and says that nobody gave a cause.
    """
    if cause == 0:
        return "0 no cause given"
    try:
        name = Cause(cause).name.lower().replace("_", " ")
    except ValueError:
        name = "unknown cause"
    return f"{cause} {name}"


def sip_from_cause(cause: int) -> int | None:
    """The SIP status that stands for a cause; None for normal clearing, which has none. Unlisted causes are 500."""
    if cause == Cause.NORMAL_CLEARING:
        return None
    return _CAUSE_TO_SIP.get(cause, 500)


def cause_from_sip(status: int) -> Cause | None:
    """The cause that stands for a final SIP status of 400 or more; None for what is no failure, and for 487.

    A status that RFC 3398 does not list counts as its class' x00 does (RFC 3261, 8.1.3.2).
    """
    if status == 487 or not 400 <= status <= 699:
        return None
    return Cause(_SIP_TO_CAUSE.get(status, _SIP_TO_CAUSE[status // 100 * 100]))
