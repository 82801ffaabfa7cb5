"""MLflow's answers as JSON: they say what MLflow's own way says, for every kind of message that MLflow has."""

import importlib
import json
import pkgutil
import random
from collections.abc import Iterator
from typing import Any

import mlflow.protos
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from mlflow.protos import service_pb2
from mlflow.utils.proto_json_utils import message_to_json
from stackops import answers

TEXTS = ("", "value", 'quo"te', "ü\n\u2028 </script>", "1")
NUMBERS = {
    Field.CPPTYPE_DOUBLE: (0.0, -0.0, 1.5, 1e300, float("nan"), float("inf"), float("-inf")),
    Field.CPPTYPE_FLOAT: (0.0, 0.1, float("nan"), float("inf")),
    Field.CPPTYPE_INT64: (0, -(2**63), 2**63 - 1, 2**53 + 1),
    Field.CPPTYPE_UINT64: (0, 2**64 - 1),
    Field.CPPTYPE_INT32: (0, -(2**31), 2**31 - 1),
    Field.CPPTYPE_UINT32: (0, 2**32 - 1),
    Field.CPPTYPE_BOOL: (True, False),
}


def kinds() -> Iterator[Descriptor]:
    """Every kind of message in mlflow.protos, those within others too."""
    waiting: list[Descriptor] = []
    for module in pkgutil.iter_modules(mlflow.protos.__path__, "mlflow.protos."):
        if module.name.endswith("_pb2"):
            waiting += importlib.import_module(module.name).DESCRIPTOR.message_types_by_name.values()
    while waiting:
        kind = waiting.pop()
        waiting += kind.nested_types
        if not kind.GetOptions().map_entry:
            yield kind


def value(field: Field, chance: random.Random) -> Any:
    """Return something that the field can have, but no message."""
    if field.cpp_type == Field.CPPTYPE_ENUM:
        return chance.choice(field.enum_type.values).number
    if field.cpp_type == Field.CPPTYPE_STRING:
        text = chance.choice(TEXTS)
        return text.encode() if field.type == Field.TYPE_BYTES else text
    return chance.choice(NUMBERS[field.cpp_type])


def fill(message: Message, chance: random.Random, depth: int = 0) -> Message:
    """Fill a message: every field at the top, some of those below."""
    if message.DESCRIPTOR.file.package == "google.protobuf":
        name = message.DESCRIPTOR.name
        {"Timestamp": lambda: message.FromMilliseconds(chance.randrange(10**12)),
         "Duration": lambda: message.FromMilliseconds(chance.randrange(10**6)),
         "FieldMask": lambda: message.paths.extend(["one", "two_three"]),
         "Value": lambda: setattr(message, "number_value", 7.5)}[name]()  # fmt: skip
        return message
    for field in message.DESCRIPTOR.fields:
        if depth and chance.random() < min(0.9, 0.25 * depth):
            continue
        if answers.is_map(field):
            part = field.message_type.fields_by_name["value"]
            for key in ("", "k", "fields"):
                if part.message_type:
                    fill(getattr(message, field.name)[key], chance, depth + 1)
                else:
                    getattr(message, field.name)[key] = value(part, chance)
        elif field.message_type:
            for _ in range(2 if field.is_repeated else 1):
                inner = getattr(message, field.name)
                inner = inner.add() if field.is_repeated else inner
                inner.SetInParent()
                fill(inner, chance, depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(value(field, chance) for _ in range(3))
        else:
            setattr(message, field.name, value(field, chance))
    return message


def same(message: Message) -> bool:
    """Whether both ways say the same, in the same order. NaN is no text here: the words for it must be equal too."""
    ours, theirs = answers.text(message), message_to_json(message)
    return repr(json.loads(ours)) == repr(json.loads(theirs))


def test_every_kind_of_message() -> None:
    """Empty, with all fields, and with some of them."""
    found = list(kinds())
    for number, kind in enumerate(found):
        chance = random.Random(number)
        make = message_factory.GetMessageClass(kind)
        assert same(make()), kind.full_name
        for _ in range(5):
            assert same(fill(make(), chance)), kind.full_name
    assert len(found) > 500


def test_most_need_no_help_from_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a training run and the pages ask for is made in one pass, the odd kinds are MLflow's."""
    assert answers.converter(service_pb2.SearchRuns.Response.DESCRIPTOR) is not answers.mlflows
    odd = [kind.full_name for kind in kinds() if not answers.is_usual(kind)]
    assert all("SearchRuns" not in name and "Metric" not in name for name in odd) and len(odd) < 20, odd
    monkeypatch.setattr(answers, "mlflows", None)
    monkeypatch.setattr(answers.theirs, "message_to_json", None)
    answers.text(fill(service_pb2.GetMetricHistory.Response(), random.Random(1)))


def test_whole_numbers_as_text_where_mlflow_wants_that() -> None:
    """Some of MLflow's answers keep protobuf's way to write them."""
    message = service_pb2.GetMetricHistory.Response()
    message.metrics.add(key="m", value=1, timestamp=2**60, step=3)
    kept = json.loads(answers.text(message, pretty=False, convert_int64_to_number=False))
    assert kept["metrics"][0]["timestamp"] == str(2**60)
    assert json.loads(answers.text(message))["metrics"][0]["timestamp"] == 2**60


def test_the_server_writes_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both modules that make answers have what is replaced."""
    from mlflow.server import auth, handlers

    for module in (auth, handlers):
        monkeypatch.setattr(module, "message_to_json", message_to_json)
    answers.take()
    assert auth.message_to_json is handlers.message_to_json is answers.text
    message = service_pb2.CreateExperiment.Response(experiment_id="7")
    assert handlers._wrap_response(message).get_data() == b'{"experiment_id":"7"}'
