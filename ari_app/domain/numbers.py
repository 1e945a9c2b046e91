"""Telephone numbers: what a trunk or a phone gives us, brought to one form.

A number of the public network becomes E.164 with its plus sign. A short number ("1000", "112") has no such form and
stays as it was dialled. The rules of each country come from the phonenumbers library.
"""

from __future__ import annotations

import re

import phonenumbers
from phonenumbers import NumberParseException, PhoneNumber, PhoneNumberFormat, PhoneNumberType, ValidationResult

from ari_app.errors import TrunkbridgeError

MIN_DIGITS = 2
MAX_DIGITS = 15
"""E.164, 6.1: at most 15 digits with the country code."""

_SEPARATORS = str.maketrans("", "", " -().\u00a0")
_SHOWN = 40


class InvalidNumber(TrunkbridgeError, ValueError):
    """Text that cannot stand for a telephone number."""

    def __init__(self, text: str, why: str) -> None:
        shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
        super().__init__("invalid_number", f"{shown!r} is no telephone number: {why}")


def normalise(dialled: str, country: str) -> str:
    """`dialled` as E.164 (`+918000000001`), or as it stands when it is a short or private number.

    Separators are removed. Accepted are E.164 with `+`, with the country's international prefix (`0091...`) or with the
    bare country code (`9180...`); national numbers with or without the trunk prefix (`080...`, `80...`); and any other
    2 to 15 digits, which stay as dialled. Doing it twice changes nothing.

    `country` is an ISO 3166 code, the one in whose national format the trunk gives numbers. Raises `InvalidNumber`,
    also for a `+` number that cannot exist and a country that phonenumbers does not know.
    """
    if country not in phonenumbers.SUPPORTED_REGIONS:
        raise InvalidNumber(dialled, f"country {country!r} is not known, give an ISO 3166 code such as IN")
    text = dialled.translate(_SEPARATORS)
    if text.startswith("+"):
        fault = _fault(text)
        if fault is not None:
            raise InvalidNumber(dialled, fault)
        return text
    if not re.fullmatch(r"[0-9]+", text):
        raise InvalidNumber(dialled, "expected digits, with or without a leading +")
    national = _parse(text, country)
    if national is not None and _subscriber(national):
        number = phonenumbers.format_number(national, PhoneNumberFormat.E164)
        # Where national numbers may begin with 0 the library takes a row of zeros for one.
        if _fault(number) is None:
            return number
    if not MIN_DIGITS <= len(text) <= MAX_DIGITS:
        raise InvalidNumber(dialled, f"{len(text)} digits, expected {MIN_DIGITS} to {MAX_DIGITS}")
    return text


def _fault(text: str) -> str | None:
    """Why `text`, which begins with +, is no E.164 number; None when it is one."""
    if not re.fullmatch(r"\+[1-9][0-9]{6,14}", text):
        return f"expected + and 7 to {MAX_DIGITS} digits, of which the first is not 0"
    number = _parse(text, None)
    if number is None or f"+{number.country_code}{phonenumbers.national_significant_number(number)}" != text:
        return "no country has it"
    if phonenumbers.is_possible_number_with_reason(number) != ValidationResult.IS_POSSIBLE:
        return f"no number of country code +{number.country_code} has this length"
    return None


def _parse(text: str, country: str | None) -> PhoneNumber | None:
    try:
        return phonenumbers.parse(text, country)
    except NumberParseException:
        return None


def _subscriber(number: PhoneNumber) -> bool:
    """Whether it is a number of the public network, rather than a short or private one.

    A new series is in use before the library's tables know it: the length of a subscriber's number is enough.
    """
    if phonenumbers.is_valid_number(number):
        return True
    possible = phonenumbers.is_possible_number_for_type_with_reason(number, PhoneNumberType.FIXED_LINE_OR_MOBILE)
    return bool(possible == ValidationResult.IS_POSSIBLE)
