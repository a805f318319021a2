"""What a replica runs on, as its spec says, and whether that is what its version's engine arguments need. Pure."""

from __future__ import annotations

from rollout.engine_specs import EngineSpec
from rollout.errors import InvalidSpec
from serving.specs import RevisionSpec

NO_IMAGE = "local"
"""The image of a spec that names none."""
PRODUCT_LABELS = ("nvidia.com/gpu.product", "cloud.google.com/gke-accelerator", "cloud.google.com/gke-tpu-accelerator")
"""Labels of nodes that say which accelerator they have."""
PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size")


def accelerator_of(engine: EngineSpec) -> str:
    """The accelerator type, which is part of a revision: other kernels, other answers.

    The product where the node selector names one, else the resource, else `cpu`.

    >>> accelerator_of(EngineSpec())
    'cpu'
    """
    taken = engine.resources.accelerators
    if not taken:
        return "cpu"
    products = (engine.node_selector.get(label) for label in PRODUCT_LABELS)
    return next((p for p in products if p), "") or min(taken)


def check_accelerators(engine: EngineSpec, revision: RevisionSpec) -> None:
    """Compare what a replica is given with what its engine will ask for.

    Raises:
        InvalidSpec: they differ, or two kinds are asked for at once.

    """
    taken = engine.resources.accelerators
    if len(taken) > 1:
        raise InvalidSpec(f"engine.resources names {len(taken)} kinds of accelerators ({', '.join(taken)}); name one")
    if not taken:
        return
    name, count = next(iter(taken.items()))
    needed = engine_accelerators(revision)
    if needed != count:
        sizes = ", ".join(f"{key} {revision.engine_args.get(key) or 1}" for key in PARALLEL)
        raise InvalidSpec(
            f"engine.resources gives a replica {count} {name}, and {revision.model}@{revision.version} needs {needed} "
            f"({sizes}); make the two equal"
        )


def engine_accelerators(revision: RevisionSpec) -> int:
    """How many accelerators one engine of a revision takes, by its arguments."""
    first, second = (int(revision.engine_args.get(key) or "1") for key in PARALLEL)
    return first * second
