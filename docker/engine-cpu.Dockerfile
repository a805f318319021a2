# syntax=docker/dockerfile:1
# The engine for CPUs: Ray and vLLM, the image of RayServices on nodes without GPUs, and for trials. x86-64 with AVX2 at least.
#   docker build -f docker/engine-cpu.Dockerfile -t tidegate-engine:0.1.0-cpu .
# Put the digest of the base image that you have checked behind the tag: --build-arg BASE=python:3.11.14-slim-bookworm@sha256:...
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
# PyTorch's CPU builds are on no other index; a mirror of it may stand here.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m venv /usr/local/tidegate
WORKDIR /src
COPY requirements/base.lock requirements/cpu.lock requirements/torch-cpu.lock requirements/
# First and alone: pip wants hashes for all of a call or for none, and this build is published in more than one form.
RUN PIP_INDEX_URL="${TORCH_INDEX}" /usr/local/tidegate/bin/pip install --no-deps --only-binary :all: \
    -r requirements/torch-cpu.lock
# hadolint ignore=DL3059
RUN /usr/local/tidegate/bin/pip install --no-deps --require-hashes --only-binary :all: \
    -r requirements/base.lock -r requirements/cpu.lock
COPY pyproject.toml README.md LICENSE ./
COPY serving serving
COPY registry registry
COPY rollout rollout
COPY monitoring monitoring
COPY guardrails guardrails
COPY console console
COPY tidegate tidegate
RUN python -m pip install setuptools==78.1.1 wheel==0.45.1 \
    && python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /usr/local/tidegate/bin/pip install --no-deps --no-index /wheels/*.whl

FROM ${BASE}
LABEL org.opencontainers.image.title="Tidegate engine for CPUs" \
      org.opencontainers.image.licenses="Apache-2.0"
# vLLM compiles its graph for the CPU that it finds (Inductor): a C++ compiler and libnuma, nothing else. Debian's point
# releases move; the base image's digest pins the rest.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 ray \
    && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash ray
COPY --from=build /usr/local/tidegate /usr/local/tidegate
ENV PATH=/usr/local/tidegate/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    VLLM_NO_USAGE_STATS=1 \
    RAY_USAGE_STATS_ENABLED=0
USER 1000:1000
WORKDIR /home/ray
CMD ["ray", "--help"]
