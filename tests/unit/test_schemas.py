"""The published JSON Schemas are what the dialects do: what is sent fits, and what comes is used exactly if it fits."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosocket.callspec import MediaFormat
from audiosocket.dialects import DIALECTS, open_dialect
from audiosocket.dialects.base import Dialect, Ignored
from audiosocket.settings import ExotelOptions, PlivoOptions, Settings, TwilioOptions
from tests.media import call_spec

pytestmark = pytest.mark.unit

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
DIRECTIONS = ("to-application", "from-application")

Json = dict[str, Any]


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
    # JSON Schema means ECMA 262, where $ is the end of the text; in Python it is also before a last line break.
    yield from jsonschema.Draft202012Validator.VALIDATORS["pattern"](
        validator, pattern.replace("$", r"\Z"), instance, schema
    )


Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": _pattern})


def schema(dialect: str, direction: str) -> Json:
    return json.loads((SCHEMAS / f"{dialect}.{direction}.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


TO = {dialect: Validator(schema(dialect, "to-application")) for dialect in DIALECTS}
FROM = {dialect: Validator(schema(dialect, "from-application")) for dialect in DIALECTS}
each_dialect = pytest.mark.parametrize("dialect", DIALECTS)


def test_each_dialect_has_its_two_schemas_and_the_page_links_to_them() -> None:
    names = {f"{dialect}.{direction}.json" for dialect in DIALECTS for direction in DIRECTIONS}
    assert {path.name for path in SCHEMAS.glob("*.json")} == names
    page = (SCHEMAS / "README.md").read_text(encoding="utf-8")
    assert all(f"]({name})" in page for name in names)


@pytest.mark.parametrize("direction", DIRECTIONS)
@each_dialect
def test_a_schema_is_one_and_says_what_it_describes(dialect: str, direction: str) -> None:
    found = schema(dialect, direction)
    Validator.check_schema(found)
    assert found["title"]
    messages = [found["$defs"][choice["$ref"].rpartition("/")[2]] for choice in found["oneOf"]]
    assert all(message["title"] and message["description"] for message in messages)


# To the application

_sid = st.binary(min_size=16, max_size=16).map(bytes.hex)
_pairs = st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=20), max_size=3)
_query = st.sampled_from(["", "?sample-rate=8000", "?a=b&a=c&%41=%zz", "?empty=&x", "?sample_rate=16000&q=1"])

MODELS: dict[str, type[Settings]] = {"exotel": ExotelOptions, "plivo": PlivoOptions, "twilio": TwilioOptions}
NUMBERS: dict[str, st.SearchStrategy[Any]] = {
    "caller_parameter": st.sampled_from([None, "from_number", "n"]),
    "callee_parameter": st.sampled_from([None, "to_number", "m"]),
}


def switches(model: type[Settings]) -> dict[str, st.SearchStrategy[Any]]:
    """Those options that have a few names to choose from."""
    return {
        name: st.sampled_from(get_args(field.annotation))
        for name, field in model.model_fields.items()
        if get_origin(field.annotation) is Literal
    }


OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "exotel": {**switches(ExotelOptions), "frame_ms": st.sampled_from(range(20, 101, 20))},
    "plivo": {**switches(PlivoOptions), **NUMBERS},
    "twilio": {**switches(TwilioOptions), **NUMBERS},
}
ACCOUNTS = {
    "exotel": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True).filter(
        lambda name: not name.startswith("AC")
    ),
    "plivo": st.from_regex(r"[MS]A[0-9A-Z]{18}", fullmatch=True),
    "twilio": _sid.map("AC".__add__),
}

_steps = st.lists(
    st.one_of(
        st.tuples(st.just("media"), st.integers(0, 255)),
        st.tuples(st.just("skip"), st.integers(1, 100_000)),
        st.tuples(st.just("dtmf"), st.sampled_from("0123456789*#ABCD")),
        st.tuples(st.just("mark"), st.text(max_size=30)),
        st.tuples(st.just("cleared"), st.none()),
        st.tuples(st.just("stop"), st.sampled_from(["callended", "stopped"])),
    ),
    max_size=12,
)


def _carried(dialect: str, media_format: MediaFormat) -> bool:
    return DIALECTS[dialect].wideband or media_format.sample_rate == 8000


@st.composite
def streams(draw: st.DrawFn, name: str) -> Dialect:
    """A dialect with any options for any call."""
    return open_dialect(
        call_spec(
            dialect=name,
            stream_sid=draw(_sid),
            call_sid=draw(_sid),
            account_sid=draw(ACCOUNTS[name]),
            caller=draw(st.text(max_size=20) | st.from_regex(r"\+91[0-9]{10}", fullmatch=True)),
            callee=draw(st.text(max_size=20)),
            url="wss://bot.example/voice" + draw(_query),
            custom_parameters=draw(_pairs),
            dialect_options=draw(st.fixed_dictionaries({}, optional=OPTIONS[name])),
            media_format=draw(st.sampled_from([form for form in MediaFormat if _carried(name, form)])),
        )
    )


def sent(dialect: Dialect, steps: list[tuple[str, Any]]) -> list[Json]:
    messages = list(dialect.opening())
    for step, value in steps:
        if step == "skip":
            dialect.skip(value)
        elif step == "media":
            messages.append(dialect.media(bytes([value]) * dialect.frame_bytes))
        else:
            messages.append(getattr(dialect, step)(*(() if value is None else (value,))))
    return [json.loads(message) for message in messages if message]


def test_every_option_is_tried() -> None:
    assert set(MODELS) == set(OPTIONS) == set(DIALECTS)
    for dialect, model in MODELS.items():
        assert set(OPTIONS[dialect]) == set(model.model_fields)


@each_dialect
@given(data=st.data())
def test_whatever_is_sent_fits(dialect: str, data: st.DataObject) -> None:
    for message in sent(data.draw(streams(dialect)), data.draw(_steps)):
        TO[dialect].validate(message)


ALL_EVENTS = [("media", 7), ("dtmf", "5"), ("mark", "m"), ("cleared", None), ("stop", "callended")]
FREE = ("custom_parameters", "customParameters")
"""What an application's author fills in: any keys; in one dialect the whole may be absent."""


def _objects(message: Any) -> Iterator[Any]:
    if isinstance(message, dict):
        yield message
        for key, value in message.items():
            if key not in FREE:
                yield from _objects(value)


def _changed(message: Json, change: str) -> Iterator[Json]:
    """The message with one key removed, one added, or one value of another type, at every place in turn."""
    for number, found in enumerate(_objects(message)):
        for key in list(found) if change != "added" else ["extra"]:
            if change == "removed" and key == "custom_parameters":
                continue
            changed = deepcopy(message)
            place = list(_objects(changed))[number]
            if change == "removed":
                del place[key]
            else:
                place[key] = None
            yield changed


@pytest.mark.parametrize("change", ["removed", "added", "null"])
@each_dialect
def test_a_message_with_a_key_removed_added_or_null_does_not_fit(dialect: str, change: str) -> None:
    account = DIALECTS[dialect].account_sid
    messages = sent(open_dialect(call_spec(dialect=dialect, account_sid=account)), ALL_EVENTS)
    described = {choice["$ref"].rpartition("/")[2] for choice in schema(dialect, "to-application")["oneOf"]}
    assert {message["event"] for message in messages} == described
    for message in messages:
        TO[dialect].validate(message)
        for changed in _changed(message, change):
            assert not TO[dialect].is_valid(changed), changed


def test_the_names_in_exotels_media_format_are_the_options() -> None:
    found = schema("exotel", "to-application")["$defs"]["start"]["properties"]["start"]["properties"]["media_format"]
    for name in ("encoding", "bit_rate"):
        field = ExotelOptions.model_fields[name]
        assert set(found["properties"][name]["enum"]) >= set(get_args(field.annotation))
        assert found["properties"][name]["default"] == field.default
    sent_rates = set()
    for form in MediaFormat:
        for bit_rate in get_args(ExotelOptions.model_fields["bit_rate"].annotation):
            spec = call_spec(media_format=form, dialect_options={"bit_rate": bit_rate})
            said = json.loads(open_dialect(spec).opening()[1])["start"]["media_format"]
            sent_rates.add((said["sample_rate"], said["bit_rate"]))
    assert {rate for rate, _ in sent_rates} == set(found["properties"]["sample_rate"]["enum"])
    assert {bits for _, bits in sent_rates} == set(found["properties"]["bit_rate"]["enum"])


# From the application

_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
_payload = (
    st.binary(max_size=12).map(lambda audio: base64.b64encode(audio).decode())
    | st.text("AQgI+/=-_ \n\0", max_size=9)
    | _json
)
_extra = st.dictionaries(st.text(max_size=6), _json, max_size=2)


def _body(field: str, value: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    named = st.builds(lambda extra, found: extra | {field: found}, _extra, value)
    return named | named | named | st.none() | _extra | _json


_text = st.text(max_size=8)
_content_type = st.sampled_from(["audio/x-mulaw", "audio/x-l16", "Audio/X-L16", " audio/x-mulaw ", "audio/wav", ""])
_rate = st.sampled_from(["", ";", ";rate=8000", "; rate=8000 ", ";8000", ";rate=", ";rate=16000", ";rate=rate=8000"])
_plivo_audio = st.fixed_dictionaries(
    {"payload": _payload},
    optional={
        "contentType": st.builds(str.__add__, _content_type, _rate) | st.none() | _json,
        "sampleRate": st.sampled_from([8000, "8000", None]) | st.sampled_from([16000, "16000", "", 8000.0]) | _json,
    },
)
_digits = st.text("0123456789*#ABCDabcd x", max_size=34) | _json
_dtmf_body = st.fixed_dictionaries({}, optional={"digit": _digits, "digits": _digits})
_stream_ids = {"stream_sid": _json, "streamSid": _json, "streamId": _text | _json}
FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "exotel": _stream_ids
    | {"media": _body("payload", _payload), "mark": _body("name", _text | _json), "dtmf": _dtmf_body | _json},
    "plivo": _stream_ids | {"media": _plivo_audio | _body("payload", _payload), "name": _text | _json, "dtmf": _digits},
}
FIELDS["twilio"] = FIELDS["exotel"]


def app_messages(dialect: str) -> st.SearchStrategy[Any]:
    """What an application may send, right and wrong."""
    known = schema(dialect, "from-application")["properties"]["event"]["enum"]
    event = st.sampled_from(known) | st.sampled_from(["stop", "Media", ""]) | _json
    fields = st.fixed_dictionaries({}, optional={"event": event} | FIELDS[dialect])
    return st.builds(lambda extra, found: extra | found, _extra, fields) | _json


@each_dialect
@given(data=st.data(), escaped=st.booleans())
def test_a_message_is_used_exactly_when_it_fits(dialect: str, data: st.DataObject, escaped: bool) -> None:
    message = data.draw(app_messages(dialect))
    decoded = open_dialect(call_spec(dialect=dialect)).decode(json.dumps(message, ensure_ascii=escaped).encode())
    if FROM[dialect].is_valid(message):
        assert not isinstance(decoded, Ignored), decoded
    else:
        assert isinstance(decoded, Ignored)
        assert decoded.reason in ("bad_shape", "bad_base64", "unknown_event", "content_type")


@each_dialect
def test_a_message_that_is_cut_short_is_no_json(dialect: str) -> None:
    for kind in schema(dialect, "from-application")["$defs"].values():
        for example in kind.get("examples", []):
            message = json.dumps(example).encode()
            for end in range(len(message)):
                assert open_dialect(call_spec(dialect=dialect)).decode(message[:end]) == Ignored("bad_json")


@each_dialect
def test_the_examples_fit_and_those_from_the_application_are_used(dialect: str) -> None:
    for direction, validator in (("to-application", TO[dialect]), ("from-application", FROM[dialect])):
        kinds = schema(dialect, direction)["$defs"].values()
        examples = [example for kind in kinds for example in kind.get("examples", [])]
        assert len(examples) >= 4
        for example in examples:
            validator.validate(example)
            if direction == "from-application":
                used = open_dialect(call_spec(dialect=dialect)).decode(json.dumps(example).encode())
                assert not isinstance(used, Ignored)
                assert not isinstance(used, bytes) or used in (b"\1\2\3\4", b"\1\2\3\4\5\6\7\x08", b"\x7c\x7d\0\0" * 2)
