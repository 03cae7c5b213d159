#!/usr/bin/env python3
"""Generates crates/wire/src/schema/tables.rs from the published Kubernetes API definitions.

    generate.py DIR > ../src/schema/tables.rs

DIR holds checkouts of k8s.io/{api,apimachinery,apiextensions-apiserver,kube-aggregator} under those names,
all of one release. Read are generated.proto (numbers, types, markers) and the Go structs beside it (JSON names,
omitempty, pointers, inlined structs). Only facts are taken over, no comments.
"""

import glob
import json
import os
import re
import sys

API = [
    "core/v1", "apps/v1", "batch/v1", "autoscaling/v1", "autoscaling/v2", "policy/v1", "networking/v1",
    "discovery/v1", "discovery/v1beta1", "coordination/v1", "storage/v1", "node/v1", "rbac/v1",
    "certificates/v1", "events/v1", "scheduling/v1", "admissionregistration/v1", "authentication/v1",
    "authorization/v1", "resource/v1", "flowcontrol/v1",
]
DIRS = ["api/" + d for d in API] + [
    "apimachinery/pkg/apis/meta/v1",
    "apimachinery/pkg/apis/meta/v1beta1",
    "apimachinery/pkg/api/resource",
    "apimachinery/pkg/util/intstr",
    "apimachinery/pkg/runtime",
    "apiextensions-apiserver/pkg/apis/apiextensions/v1",
    "kube-aggregator/pkg/apis/apiregistration/v1",
]
META = "k8s.io.apimachinery.pkg.apis.meta.v1."
EXT = "k8s.io.apiextensions_apiserver.pkg.apis.apiextensions.v1."
SCALARS = {
    "string": "String", "bool": "Bool", "int32": "Int32", "int64": "Int64", "double": "Double", "bytes": "Bytes",
}
SPECIAL = {
    "k8s.io.apimachinery.pkg.api.resource.Quantity": "Quantity",
    "k8s.io.apimachinery.pkg.util.intstr.IntOrString": "IntOrString",
    "k8s.io.apimachinery.pkg.runtime.RawExtension": "RawExtension",
    META + "Time": "Time",
    META + "MicroTime": "MicroTime",
    META + "Duration": "Duration",
    META + "FieldsV1": "FieldsV1",
    EXT + "JSON": "Json",
    EXT + "JSONSchemaPropsOrArray": "JsonSchemaPropsOrArray",
    EXT + "JSONSchemaPropsOrBool": "JsonSchemaPropsOrBool",
    EXT + "JSONSchemaPropsOrStringArray": "JsonSchemaPropsOrStringArray",
}
# Kinds of meta.k8s.io/v1 that stand in the core group as well.
CORE_META = ["Status", "APIVersions", "APIGroup", "APIGroupList", "APIResourceList", "ListOptions", "GetOptions",
             "DeleteOptions", "CreateOptions", "UpdateOptions", "PatchOptions", "WatchEvent"]


def fail(message):
    sys.exit("generate.py: " + message)


class Package:
    """One directory: its proto messages and its Go structs."""

    def __init__(self, root, path):
        self.path = path
        self.version = os.path.basename(path)
        directory = os.path.join(root, path)
        proto = open(os.path.join(directory, "generated.proto")).read()
        self.name = re.search(r"^package ([\w.]+);", proto, re.M).group(1)
        self.messages = dict(self.parse_proto(proto))
        self.structs, self.aliases, self.lists, self.constants, self.group = {}, {}, set(), {}, ""
        for name in sorted(glob.glob(directory + "/*.go")):
            if not re.search(r"_test\.go$|generated|zz_", os.path.basename(name)):
                self.parse_go(open(name).read())
        if self.group is None:
            fail("no GroupName in " + path)

    def parse_proto(self, text):
        for match in re.finditer(r"^message (\w+) \{\n(.*?)^\}", text, re.M | re.S):
            fields, comment = [], []
            for line in match.group(2).splitlines():
                line = line.strip()
                if line.startswith("//"):
                    comment.append(line[2:].strip())
                    continue
                field = re.match(r"(optional |repeated |map<string, )([\w.]+)>? (\w+) = (\d+);$", line)
                if field:
                    label, kind, name, number = field.groups()
                    fields.append({
                        "label": label.strip(" ,"), "type": self.resolve(kind), "name": name,
                        "number": int(number), "markers": [c[1:] for c in comment if c.startswith("+")],
                    })
                elif line:
                    fail("cannot read in %s: %s" % (match.group(1), line))
                comment = []
            yield match.group(1), fields

    def resolve(self, kind):
        if kind in SCALARS:
            return kind
        return kind[1:] if kind.startswith(".") else self.name + "." + kind

    def parse_go(self, text):
        group = re.search(r'^const (?:\(\s*)?GroupName\s*=\s*"(.*)"', text, re.M)
        if group:
            self.group = group.group(1)
        for name, value in re.findall(r'^\s*(?:const )?(\w+)(?: +\w+)? += ("[^"]*")$', text, re.M):
            self.constants[name] = value
        for name, target in re.findall(r"^type (\w+) =? ?([\w.]+)$", text, re.M):
            self.aliases[name] = target
        self.lists.update(re.findall(r"^type (\w+) \[\]string$", text, re.M))
        for name, body in re.findall(r"^type (\w+) struct ?\{(?:\}|\n(.*?)^\})", text, re.M | re.S):
            members = []
            for line in body.splitlines():
                line = line.strip()
                member = re.match(r"(?:(\w+)\s+)?([\w.*\[\]]+)\s+`(.*)`", line)
                if not member or line.startswith("//"):
                    continue
                tags = member.group(3)
                tag = lambda key: (re.search(r'\b%s:"([^"]*)"' % key, tags) or [None, None])[1]
                number = re.match(r"\w+,(\d+)", tag("protobuf") or "")
                members.append({
                    "name": member.group(1), "type": member.group(2), "json": (tag("json") or "").split(","),
                    "number": int(number.group(1)) if number else None,
                })
            self.structs[name] = members


def openapi_name(name):
    return "io.k8s." + name.removeprefix("k8s.io.").replace("_", "-")


class Generator:
    def __init__(self, root):
        self.packages = {}
        for path in DIRS:
            package = Package(root, path)
            self.packages[package.name] = package
        self.out = {}

    def find(self, name):
        package, _, message = name.rpartition(".")
        return self.packages[package], message

    def struct(self, package, message):
        if message in package.structs:
            return package.structs[message]
        target = package.aliases.get(message)
        if target:
            short = target.rpartition(".")
            if not short[0]:
                return self.struct(package, short[2])
            return self.struct(self.packages[META[:-1]], short[2])
        fail("no Go struct for %s.%s" % (package.name, message))

    def kind(self, type_name):
        if type_name in SCALARS:
            return SCALARS[type_name]
        if type_name in SPECIAL:
            return SPECIAL[type_name]
        package, message = self.find(type_name)
        if message in package.lists:
            return "StringList"
        self.message(type_name)
        return type_name

    def message(self, name):
        if name in self.out:
            return
        self.out[name] = fields = []
        fields.extend(self.fields(name, []))

    def fields(self, name, parents):
        package, message = self.find(name)
        by_number = {f["number"]: f for f in package.messages[message]}
        seen = set()
        for member in self.struct(package, message):
            if member["number"] is None:
                if member["name"] and member["json"][0] not in ("-", ""):
                    fail("no protobuf number: %s.%s" % (name, member["name"]))
                continue
            number = member["number"]
            field = by_number[number]
            seen.add(number)
            if member["name"] is None and member["json"][0] == "":
                if len(parents) == 2:
                    fail("inlined three deep: " + name)
                yield from self.fields(field["type"], parents + [number])
                continue
            yield self.field(package, field, member, parents)
        if seen != set(by_number):
            fail("%s: fields %s are not in Go" % (name, set(by_number) - seen))

    def field(self, package, field, member, parents):
        markers = field["markers"]
        values = lambda key: [m[len(key) + 1:].strip() for m in markers if m.startswith(key + "=")]
        one = lambda key: (values(key) or [None])[0]
        json_name, *options = member["json"]
        default = one("default")
        if default and default.startswith("ref("):
            constant = default[4:-1].rpartition(".")[2]
            default = package.constants[constant]
        if default:
            default = json.dumps(json.loads(default))
        go = member["type"]
        return {
            "json": json_name or field["name"],
            "kind": self.kind(field["type"]),
            "repeated": field["label"] == "repeated",
            "map": field["label"].startswith("map"),
            "number": field["number"],
            "parents": parents,
            "required": "required" in markers or ("optional" not in markers and "omitempty" not in options),
            "pointer": go.startswith("*"),
            "omit_empty": "omitempty" in options,
            "omit_zero": "omitzero" in options,
            "list_type": one("listType"),
            "keys": values("listMapKey"),
            "atomic": "atomic" in values("structType") + values("mapType"),
            "merge_key": one("patchMergeKey"),
            "strategy": one("patchStrategy"),
            "default": default,
        }

    def kinds(self):
        meta = self.packages[META[:-1]]
        for package in self.packages.values():
            if package.path == "apimachinery/pkg/runtime":
                continue
            for name, members in sorted(package.structs.items()):
                typed = any(m["name"] is None and m["type"].endswith("TypeMeta") for m in members)
                if (typed or (package is meta and name == "WatchEvent")) and name in package.messages:
                    yield package.group, package.version, name, package.name + "." + name
                    if package is meta and name in CORE_META:
                        yield "", "v1", name, package.name + "." + name
        yield "", "v1", "List", META + "List"
        yield meta.group, "v1beta1", "PartialObjectMetadata", META + "PartialObjectMetadata"

    def run(self):
        kinds = sorted(set(self.kinds()))
        for kind in kinds:
            self.message(kind[3])
        # What the special kinds of JSONSchemaProps refer to.
        self.message(EXT + "JSONSchemaProps")
        names = sorted(self.out, key=openapi_name)
        index = {name: i for i, name in enumerate(names)}
        print("// Generated by schema/generate.py from the published API definitions; do not edit.")
        print("use super::{Field, FieldKind as K, KindEntry, ListType, Markers, Message, NONE, ATOMIC_LIST, always, omitted, pointer};\n")
        print("pub(super) static MESSAGES: [Message; %d] = [" % len(names))
        for name in names:
            fields = self.out[name]
            order = sorted(range(len(fields)),
                           key=lambda i: fields[i]["parents"] + [fields[i]["number"]])
            print("    Message { name: %s, fields: &[" % json.dumps(openapi_name(name)))
            for f in fields:
                print("        %s," % self.rust(f, index))
            print("    ], wire_order: &%s }," % order)
        print("];\n")
        print("pub(super) static KINDS: [KindEntry; %d] = [" % len(kinds))
        for group, version, kind, name in kinds:
            print("    KindEntry { group: %s, version: %s, kind: %s, message: %d }," %
                  (json.dumps(group), json.dumps(version), json.dumps(kind), index[name]))
        print("];")

    def rust(self, f, index):
        string = json.dumps
        kind, message = f["kind"], 0
        if kind in index:
            message = index[kind]
            kind = "K::Message(%s)" % string(openapi_name(kind))
        else:
            kind = "K::" + kind
            if f["kind"].startswith("JsonSchemaPropsOr"):
                message = index[EXT + "JSONSchemaProps"]
        presence = "pointer" if f["pointer"] and f["omit_empty"] else "omitted" if f["omit_empty"] else "always"
        rest, markers = [], []
        if f["pointer"] and not f["omit_empty"]:
            rest.append("pointer: true")
        if f["omit_zero"]:
            rest.append("omit_zero: true")
        for flag in ("repeated", "map", "required"):
            if f[flag]:
                rest.append(flag + ": true")
        if f["parents"]:
            rest.append("parents: [%d, %d]" % tuple((f["parents"] + [0])[:2]))
        if message:
            rest.append("message: %d" % message)
        if f["atomic"]:
            markers.append("atomic: true")
        if f["list_type"]:
            markers.append("list_type: Some(ListType::%s)" % f["list_type"].capitalize())
        if f["keys"]:
            markers.append("list_map_keys: &[%s]" % ", ".join(string(k) for k in f["keys"]))
        if f["merge_key"]:
            markers.append("patch_merge_key: Some(%s)" % string(f["merge_key"]))
        if f["strategy"]:
            markers.append("patch_strategy: Some(%s)" % string(f["strategy"]))
        if f["default"] is not None:
            markers.append("default: Some(%s)" % string(f["default"]))
        if markers == ["list_type: Some(ListType::Atomic)"]:
            rest.append("markers: Some(&ATOMIC_LIST)")
        elif markers:
            rest.append("markers: Some(&Markers { %s, ..NONE })" % ", ".join(markers))
        base = "%s(%s, %s, %d)" % (presence, string(f["json"]), kind, f["number"])
        return "Field { %s, ..%s }" % (", ".join(rest), base) if rest else base


if len(sys.argv) != 2:
    sys.exit(__doc__)
Generator(sys.argv[1]).run()
