"""What the custom resource is called, and the words in its metadata that mean something to us. Pure."""

from __future__ import annotations

GROUP = "tidegate.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
PLURAL = "modeldeployments"
SINGULAR = "modeldeployment"
KIND = "ModelDeployment"
SHORT_NAME = "mdep"
DEFINITION = f"{PLURAL}.{GROUP}"

FINALIZER = f"{GROUP}/drain"
"""Holds a resource that is being deleted until its model has been drained."""

OPERATOR_MANAGER = "tidegate-operator"
"""The operator's field manager: the status and the finalizer are its own."""
CLI_MANAGER = "tidegate"
"""The field manager of people who use the command line."""
