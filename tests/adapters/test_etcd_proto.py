"""Our part of etcd's API has the names, numbers and types that etcd itself was compiled from.

A Go program carries the descriptors of its protocol buffers. They are read out of the etcd that the tests run, so that
no Go module cache is needed (`make setup` removes the one it made), and it is surely the right version.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from fixtures.etcd import find_etcd
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.message import DecodeError

from reconciler.adapters.etcd import generate
from reconciler.adapters.etcd._pb import etcd_pb2, mvcc_pb2

ROOT = Path(__file__).parents[2]
PACKAGES = ("etcdserverpb", "mvccpb")
SYNTAX = b"b\x06proto3"  # field 12, the last of a serialized proto3 descriptor


def ours(package: str) -> FileDescriptorProto:
    module = {"etcdserverpb": etcd_pb2, "mvccpb": mvcc_pb2}[package]
    return FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)


@cache
def theirs() -> dict[str, FileDescriptorProto]:
    found: dict[str, FileDescriptorProto] = {}
    for file in descriptors(find_etcd().read_bytes()):
        if file.package in PACKAGES:
            found.setdefault(file.package, FileDescriptorProto()).MergeFrom(file)
    if set(found) != set(PACKAGES):
        assert runs() != pinned(), "the pinned etcd carries no descriptors that this test can read"
        pytest.skip(f"etcd {runs()} carries no descriptors; unset REGOPS_ETCD and run `make setup` for {pinned()}")
    return found


def descriptors(program: bytes) -> Iterator[FileDescriptorProto]:
    """As protobuf-go embeds them (bare, etcd 3.7) and as gogo/protobuf does (compressed, before)."""
    for start in re.finditer(rb"\n[\x08-\x40][\w./-]+\.proto\x12", program):
        last = program.find(SYNTAX, start.start())
        if last >= 0:
            yield from parsed(program[start.start() : last + len(SYNTAX)])
    for start in re.finditer(rb"\x1f\x8b\x08\x00\x00\x00\x00\x00[\x00\x02\x04]\xff", program):
        try:
            yield from parsed(zlib.decompressobj(31).decompress(program[start.start() : start.start() + 1_000_000]))
        except zlib.error:
            continue


def parsed(data: bytes) -> Iterator[FileDescriptorProto]:
    try:
        yield FileDescriptorProto.FromString(data)
    except DecodeError:
        return


def pinned() -> str:
    found = re.search(r"go\.etcd\.io/etcd/server/v3 v(\S+)", (ROOT / "tools" / "go.mod").read_text())
    assert found
    return found[1]


def runs() -> str:
    told = subprocess.run([find_etcd(), "--version"], capture_output=True, text=True, check=True).stdout
    return told.split()[2]


def messages(file: FileDescriptorProto) -> dict[str, DescriptorProto]:
    return {message.name: message for message in file.message_type}


def shape(field: FieldDescriptorProto, owner: DescriptorProto) -> tuple[object, ...]:
    """What decides how a field is written: name, type, whether repeated, and what it excludes."""
    oneof = owner.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
    return field.name, field.type, field.type_name, field.label == FieldDescriptorProto.LABEL_REPEATED, oneof


def enums(message: DescriptorProto) -> dict[str, EnumDescriptorProto]:
    return {enum.name: enum for enum in message.enum_type}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_field_has_the_number_name_and_type_of_etcd_s(package: str) -> None:
    etcd = messages(theirs()[package])
    compared = 0
    for name, message in messages(ours(package)).items():
        assert name in etcd, f"etcd has no message {name}"
        numbers = {field.number: field for field in etcd[name].field}
        for field in message.field:
            assert field.number in numbers, f"{name}.{field.name}: etcd has no field {field.number}"
            assert shape(field, message) == shape(numbers[field.number], etcd[name]), f"{name}.{field.name}"
            compared += 1
        for enum in message.enum_type:
            known = {value.number: value.name for value in enums(etcd[name])[enum.name].value}
            assert {value.number: value.name for value in enum.value}.items() <= known.items(), f"{name}.{enum.name}"
    assert compared >= 5


def test_every_call_takes_and_gives_what_etcd_s_does() -> None:
    etcd = {service.name: {call.name: call for call in service.method} for service in theirs()["etcdserverpb"].service}
    for service in ours("etcdserverpb").service:
        for call in service.method:
            known = etcd[service.name][call.name]
            for aspect in ("input_type", "output_type", "client_streaming", "server_streaming"):
                assert getattr(call, aspect) == getattr(known, aspect), f"{service.name}.{call.name}: {aspect}"


def test_the_stubs_are_those_of_the_proto_files(tmp_path: Path) -> None:
    """Regenerated and compared, so that nobody edits one and forgets the other."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools of requirements.lock is not installed: run `make setup`")
    generate.generate(tmp_path)
    folder = Path(etcd_pb2.__file__).parent
    made = sorted(tmp_path.rglob("*_pb2*"))
    assert len(made) == 5
    for file in made:
        assert file.read_text() == (folder / file.name).read_text(), f"run: {sys.executable} -m {generate.__name__}"


@pytest.mark.parametrize("compressed", [False, True])
def test_descriptors_are_found_in_a_program_of_either_generator(compressed: bool) -> None:
    data = FileDescriptorProto(name="kv.proto", package="mvccpb", syntax="proto3").SerializeToString()
    if compressed:
        packer = zlib.compressobj(9, wbits=31)
        data = packer.compress(data) + packer.flush()
        data = data[:8] + b"\x02\xff" + data[10:]  # as Go's compress/gzip writes it
    assert [file.package for file in descriptors(b"\x7fELF\n" + data + b"\n\x09x.proto")] == ["mvccpb"]
