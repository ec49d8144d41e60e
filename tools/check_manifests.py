#!/usr/bin/env python3
"""Checks Kubernetes manifests against the API schemas of several minor versions; for `scripts/kubernetes.sh validate`.

Kinds of other projects (KEDA, the Prometheus operator) are checked where `--crds` names a folder with the YAML files of
their CustomResourceDefinitions; else they are named as not checked. A field that the schema does not have is an error.

Needs kubernetes-validate (PyPI), which brings the schemas.
"""

import argparse
import copy
import pathlib
import sys

import jsonschema
import kubernetes_validate
import yaml

# Groups whose kinds are no part of Kubernetes: any other kind without a schema is a mistake.
OTHERS = ("keda.sh/", "monitoring.coreos.com/")


def custom_schemas(folder: pathlib.Path) -> dict:
    """(apiVersion, kind) -> schema, of each version that a CustomResourceDefinition serves."""
    schemas = {}
    for file in sorted(folder.glob("*.yaml")):
        for crd in yaml.safe_load_all(file.read_text()):
            if not crd or crd.get("kind") != "CustomResourceDefinition":
                continue
            for version in crd["spec"]["versions"]:
                schema = copy.deepcopy(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
                close(schema)
                schemas[f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]] = schema
    return schemas


def close(schema) -> None:
    """Fields that are not named are errors, as the API server's strict decoding has it."""
    if isinstance(schema, list):
        for part in schema:
            close(part)
    if not isinstance(schema, dict):
        return
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    # Of the schema language alone: a property may have the name of one of its words.
    for word in ("items", "additionalProperties"):
        close(schema.get(word))
    for part in schema.get("properties", {}).values():
        close(part)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", nargs="+", required=True, metavar="1.N")
    parser.add_argument("--crds", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()
    custom = custom_schemas(arguments.crds) if arguments.crds else {}
    failures, checked, unchecked = 0, 0, set()

    def fails(file, resource, against, why):
        nonlocal failures
        failures += 1
        name = f"{resource.get('kind')}/{resource.get('metadata', {}).get('name')}"
        print(f"{file}: {name} against {against}: {why}", file=sys.stderr)

    for file in arguments.files:
        for resource in yaml.safe_load_all(file.read_text()):
            kind = resource.get("apiVersion", ""), resource.get("kind", "")
            if kind[0].startswith(OTHERS):
                if kind not in custom:
                    unchecked.add(kind[1])
                    continue
                errors = jsonschema.Draft202012Validator(custom[kind]).iter_errors(resource)
                for error in errors:
                    fails(file, resource, kind[0], f"{error.json_path}: {error.message}")
                checked += 1
                continue
            for version in arguments.versions:
                try:
                    kubernetes_validate.validate(resource, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    fails(file, resource, version, f"{error.json_path}: {error.message}")
                except kubernetes_validate.SchemaNotFoundError as error:
                    fails(file, resource, version, error.message)
                checked += 1
    if unchecked:
        print(f"!!! NOT checked, for want of --crds: {', '.join(sorted(unchecked))}", file=sys.stderr)
    print(f"{checked} checks against Kubernetes {', '.join(arguments.versions)}, {failures} failures")
    return 1 if failures or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
